"""Colours of the report, for light and for dark screens: chosen once, used by plots and page."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Palette:
    """Ink and ground, and lines that can be told apart, also by eyes that see fewer colours."""

    name: str
    ground: str
    ink: str
    # Labels of axes, notes.
    faint_ink: str
    grid: str
    lines: tuple[str, ...]


# Neighbours differ in lightness as well; beyond the last one the dashes change.
LIGHT = Palette(
    name="light",
    ground="#ffffff",
    ink="#1a1a19",
    faint_ink="#5c5b57",
    grid="#e3e2de",
    lines=(
        "#2a78d6",
        "#e0631f",
        "#17936a",
        "#8b5cd6",
        "#b98500",
        "#d6397f",
        "#3f7f17",
        "#6b6a66",
    ),
)
DARK = Palette(
    name="dark",
    ground="#1a1a19",
    ink="#f2f1ed",
    faint_ink="#b4b2ab",
    grid="#3a3936",
    lines=(
        "#5b9eea",
        "#f08a4b",
        "#35bd90",
        "#b08cf0",
        "#dfae33",
        "#f06aa5",
        "#7dbf4f",
        "#a5a39c",
    ),
)
# With every eight lines.
DASHES = ("-", "--", ":", "-.")
