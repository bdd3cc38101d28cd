"""Colours of the app and its figures. Blue and orange stand for signs, and the sign is always written too."""

MARK = "#CF7A00"
"""Bars and points of one quantity; legible on light and dark pages."""
ELSEWHERE = "#8A8F98"
RAISED, LOWERED = "#2A7FBA", "#D55E00"
SERIES = (MARK, "#2A7FBA", "#2E9E73", "#B0609B")
"""Several packs in one figure, distinguishable by colour-blind readers too."""


def lowered_or_raised(value: float) -> str:
    return RAISED if value >= 0 else LOWERED


LIGHT = {
    "primaryColor": "#944E00",
    "backgroundColor": "#FFFFFF",
    "secondaryBackgroundColor": "#F5F4F1",
    "textColor": "#14161A",
    "linkColor": "#8A4B00",
    "codeTextColor": "#14161A",
    "borderColor": "#DDDAD3",
}
DARK = {
    "primaryColor": "#E39A2F",
    "backgroundColor": "#14161A",
    "secondaryBackgroundColor": "#1E2127",
    "textColor": "#E8E6E1",
    "linkColor": "#F0B45A",
    "codeTextColor": "#E8E6E1",
    "borderColor": "#363A42",
}
