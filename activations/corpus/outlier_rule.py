"""The rule that flags outliers: rows whose norm exceeds a multiple of the median of a sample, at each site.

norm > times x median of the site's norms in the sample
"""

from dataclasses import dataclass
from typing import TypedDict

RULE = "norm > times x median of the site's norms in the sample"
FIRST_CONTEXTS = "the first contexts of the corpus"

Sample = TypedDict("Sample", {"contexts": int, "rows": int, "from": str})
"""The rows from which the medians were taken."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Median of the norms at each site, and the norm above which a row is an outlier; None where the median is 0."""

    median: dict[str, float]
    threshold: dict[str, float | None]

    @classmethod
    def of(cls, times: float, median: dict[str, float]) -> "Thresholds":
        return cls(median=median, threshold={site: times * m or None for site, m in median.items()})


@dataclass(frozen=True, kw_only=True)
class OutlierRule:
    """The outlier rule of a recording: the sample it was measured on, and thresholds; patches of images have their own."""

    rule: str
    times: float
    sample: Sample
    median: dict[str, float]
    threshold: dict[str, float | None]
    image: Thresholds | None = None


def outlier_rule(
    times: float, sample: Sample, median: dict[str, float], image_median: dict[str, float] | None = None
) -> OutlierRule:
    """The rule that flags norms above `times` the medians of a sample."""
    image = Thresholds.of(times, image_median) if image_median else None
    return OutlierRule(rule=RULE, times=times, sample=sample, **vars(Thresholds.of(times, median)), image=image)
