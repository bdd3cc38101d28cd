"""Cards as one HTML file that needs nothing else: no script, nothing fetched, light or dark as the reader's system is."""

from pathlib import Path

from scope.escape import escape
from scope.features.exports.card import card_html
from scope.features.pack.data import PackData
from scope.features.pack.feature import Feature
from scope.html_page import head
from scope.progress import OnProgress

MOST = 2000
"""Cards on a page; at about 20 kB each, more is more than a browser opens gladly."""

_CARD = "border:1px solid rgba(128,128,128,.4);border-radius:8px;padding:12px 16px;margin:16px 0"


def html_file(pack: PackData, latents: list[int], file: Path, on_progress: OnProgress | None = None) -> None:
    """A page of cards, in the order given, with where they come from at its head."""
    with file.open("w", encoding="utf-8", errors="replace") as f:
        f.write(_head(pack, len(latents)))
        for done, latent in enumerate(latents, 1):
            f.write(
                f'<section id="latent-{latent}" style="{_CARD}">{card_html(Feature(latent, pack), examples=16)}</section>\n'
            )
            if on_progress:
                on_progress(done, len(latents), {})
        f.write("</body></html>\n")


def _head(pack: PackData, n: int) -> str:
    made, dictionary = pack.manifest.made, pack.dictionary
    facts = [
        f"{n:,} of {pack.d_sae:,} latents, counted on {pack.n_tokens:,} tokens",
        f"dictionary {dictionary.kind or ''} {(dictionary.parameters_sha256 or '')[:12]}",
        f"made {made.date} with scope {made.scope}",
    ]
    return f'{head(pack.title, 960)}<p style="opacity:.7;font-size:13px">{escape(" · ".join(facts))}</p>\n'
