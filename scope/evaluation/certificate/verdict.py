"""The verdict on the numbers of a certificate: whether a dictionary fits, which other reading explains it, in what words.

Nothing but numbers goes in, so that a certificate that was kept is judged again whenever it is read, instead of believed.
"""

import math
from typing import Any

Found = dict[str, Any]


def judge(
    measured: Found, declared: Found, null: Found, tried: list[Found], as_is: Found, other_text: bool = False
) -> tuple[bool, str, list[str], list[Found]]:
    """(whether it fits, in what words, notes, what was tried: best first, each with whether it `explains`).

    `as_is` is the dictionary as it stands on those tokens on which the others were tried. On `other_text` than it was trained
    on, what it declares is not held against it, and only another reading that does far better refuses it.
    """
    declared = {} if other_text else declared
    wrong = problems(measured, declared, null["fvu"])
    judged = [r | {"explains": not problems(r, declared) and _better(r, as_is, wrong, declared)} for r in tried]
    judged.sort(key=lambda r: (not r["explains"], _distance(r, declared, wrong), r["fvu"]))
    return *_verdict(wrong, judged, measured, declared, other_text), judged


def _verdict(
    wrong: dict[str, str], tried: list[Found], measured: Found, declared: Found, other_text: bool
) -> tuple[bool, str, list[str]]:
    right = next((r for r in tried if r["explains"]), None)
    if right:
        why = (
            "; ".join(wrong.values())
            or f"a neighbouring site leaves {right['fvu']:.3f} where this one leaves {measured['fvu']:.3f}"
        )
        return False, f"{right['name']} ({why}). To mend it: {right['remedy']}.", []
    if not wrong:
        return True, "It fits.", []
    if other_text:
        return True, "Nothing else fits better, and this is not the text it was trained on.", list(wrong.values())
    l0, expected = measured["l0"], middle(declared.get("l0"))
    far = expected is not None and not expected / 4 <= l0 <= 4 * expected
    bound = declared.get("fvu")
    lost = "fvu" in wrong and (bound is None or measured["fvu"] > max(3 * bound + 0.1, 0.3))
    if far or lost:
        said = "; ".join(wrong.values())
        best = f" (the best that was tried leaves FVU {tried[0]['fvu']:.3g})" if tried and "fvu" in wrong else ""
        said = f"{said[:1].upper()}{said[1:]}, and no other reading explains it{best}: was it made for other weights?"
        return False, said, []
    return True, "It fits, less well than declared.", list(wrong.values())


def problems(scores: Found, declared: Found, null: float = math.inf) -> dict[str, str]:
    """What is not as it should be, by measure. `null` is the FVU that a random dictionary of equal L0 reaches."""
    wrong, l0, error = {}, declared.get("l0"), declared.get("fvu")
    if l0 is not None:
        low, high = l0 if isinstance(l0, list | tuple) else (l0, l0)
        if not low / 2 <= scores["l0"] <= high * 2:
            wrong["l0"] = f"{scores['l0']:.1f} latents fire per token where {shown(l0)} were declared"
    if scores["l0"] == 0:
        wrong["l0"] = "no latent fires on any token of this text"
    limit = min(0.9, 1.5 * error + 0.1) if error is not None else 0.9
    if not scores["fvu"] <= limit:
        beside = f"where {error:.3f} was declared" if error is not None else "where predicting the mean leaves 1"
        wrong["fvu"] = f"FVU is {scores['fvu']:.3g} {beside}"
    elif scores["fvu"] >= null:
        wrong["fvu"] = f"FVU is {scores['fvu']:.3f}, no better than a random dictionary's {null:.3f}"
    return wrong


def _better(scores: Found, as_is: Found, wrong: dict[str, str], declared: Found) -> bool:
    """Whether a reading does so much better that it is the right one: where FVU is too high, by FVU, which must come to 0.5 or
    less where none was declared; where only L0 is off, by bringing that back at no cost in FVU to speak of; where all is as
    declared, or nothing is, by half the FVU at a like L0.

    L0 is held because activations of a greater norm let more latents fire, which lowers FVU anywhere.
    """
    if "fvu" in wrong:
        return scores["fvu"] < 0.7 * as_is["fvu"] and (declared.get("fvu") is not None or scores["fvu"] <= 0.5)
    if "l0" in wrong:
        return scores["fvu"] < 1.5 * as_is["fvu"] + 0.05
    return scores["fvu"] < 0.5 * as_is["fvu"] and scores["l0"] < (1.25 if declared.get("l0") else 2.0) * as_is["l0"]


def _distance(scores: Found, declared: Found, wrong: dict[str, str]) -> float:
    """How far L0 is from what was declared, where that was the trouble; else FVU."""
    expected = middle(declared.get("l0"))
    if "l0" not in wrong or "fvu" in wrong or not expected:
        return scores["fvu"]
    return abs(math.log(max(scores["l0"], 1e-6) / expected))


def middle(l0: Any) -> float | None:
    """Of what was declared: the number, or the geometric mean of a range's ends."""
    return (l0[0] * l0[1]) ** 0.5 if isinstance(l0, list | tuple) else l0


def shown(l0: Any) -> str:
    return f"{l0[0]:g} to {l0[1]:g}" if isinstance(l0, list | tuple) else f"{l0:.4g}"
