"""Site patterns, read in one way everywhere: names, globs, `all`, several with commas between."""

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from scope.errors import UnknownSite


def match_sites(patterns: str | Iterable[str], known: Iterable[str], where: str = "This model") -> list[str]:
    """The sites that patterns name, in the order of `known`.

    A pattern is a site's full name, a glob such as `blocks.*.hook_resid_post`, the end of names without its `hook_`, such as
    `resid_post` or `state`, or `all`; one string may hold several with commas between.

    Raises:
        UnknownSite: no pattern is given, or one matches nothing. The message lists the nearest sites.
    """
    known = list(known)
    wanted: set[str] = set()
    names = [p.strip() for text in ([patterns] if isinstance(patterns, str) else patterns) for p in text.split(",")]
    names = [name for name in names if name]
    if not names:
        raise UnknownSite("No site is given. Name one, such as blocks.3.hook_resid_post, or a glob, or all.")
    for pattern in names:
        found = known if pattern == "all" else [s for s in known if s == pattern or fnmatchcase(s, pattern)]
        found = found or [s for s in known if s.rpartition(".")[2] == f"hook_{pattern}"]
        if not found:
            raise UnknownSite(
                f"{where} has no site {pattern}.{nearest(pattern, known)}\n"
                f"  It has: {', '.join(families(known)) or 'none'}\n  Globs and `all` work too."
            )
        wanted.update(found)
    return [site for site in known if site in wanted]


def nearest(name: str, known: Sequence[str], n: int = 4) -> str:
    """The end of a refusal: the known names most like `name`."""
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4) or list(known)[:n]
    return f"\n  Nearest: {', '.join(close)}" if close else ""


def families(known: Iterable[str]) -> list[str]:
    """Sites with the numbers of their blocks drawn together: blocks.0-3.hook_resid_post."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for site in known:
        block = re.fullmatch(r"(.*?\.)(\d+)(\..*)", site)
        numbers.setdefault((block[1], block[3]) if block else (site, ""), []).append(int(block[2]) if block else 0)
    spans = {key: f"{min(n)}-{max(n)}" if len(n) > 1 else f"{n[0]}" for key, n in numbers.items()}
    return [f"{before}{spans[before, after]}{after}" if after else before for before, after in numbers]


_OTHER_SPACE = re.compile(r"\.(rec\.hook_(?!rec_out$)\w+|attn\.hook_(q|k|v|z|rot_q|rot_k)|mlp\.hook_(pre|pre_linear|post))$")
"""Ends of the sites of heads, of neurons, and of the channels of a recurrence."""


def in_stream_space(site: str) -> bool:
    """Whether the coordinates of a site are those of the residual stream, so that its directions have logits: not those of
    heads, of neurons, or of the channels of a recurrence, even where there are as many."""
    return not _OTHER_SPACE.search(site)
