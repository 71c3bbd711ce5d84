"""Figures of two panels in the style of the report, as PNG. The only user of matplotlib.

matplotlib is imported when the first figure is made: table and JSON work without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any

from simulator.report.palette import DASHES, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of every picture.
WIDTH_PX, HEIGHT_PX = 1400, 700
_DPI = 160
_MARKERS = "osD^vP*X"
# Beside each other in the legend, with room for the line before each name.
_LEGEND_CHARACTERS = 130


class PlotsUnavailable(ImportError):
    """The packages that draw are not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"plots and the HTML page need matplotlib and numpy, and {missing} is missing; run "
            "`make install` in the checkout, or .venv/bin/pip install --constraint constraints.txt "
            "--editable '.[simulate]'; the table and the JSON file need neither"
        )
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Look:
    """How one line is drawn."""

    color: str
    linestyle: str
    marker: str

    @classmethod
    def of(cls, palette: Palette, number: int) -> "Look":
        """Of the line with that number; the same number looks the same in every figure."""
        dashes = DASHES[number // len(palette.lines) % len(DASHES)]
        shade = number % len(palette.lines)
        return cls(palette.lines[shade], dashes, _MARKERS[shade])

    def line(self) -> dict[str, Any]:
        """Options of a line."""
        return {"color": self.color, "linestyle": self.linestyle, "linewidth": 1.4}


def check_plots() -> None:
    """Raises: PlotsUnavailable. Call it before a long run whose end is to be drawn."""
    try:
        for name in ("numpy", "matplotlib.backends.backend_agg"):
            import_module(name)
    except ImportError as error:
        raise PlotsUnavailable(error.name or "matplotlib") from error


class Canvas:
    """One figure: a title, two panels side by side, a legend below."""

    def __init__(self, palette: Palette, title: str) -> None:
        check_plots()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        self.palette = palette
        self.figure: Figure = Figure(
            figsize=(WIDTH_PX / _DPI, HEIGHT_PX / _DPI),
            dpi=_DPI,
            layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06),
            facecolor=palette.ground,
        )
        FigureCanvasAgg(self.figure)
        self.figure.suptitle(title, fontsize=10.5, color=palette.ink)
        self.left, self.right = self.figure.subplots(1, 2)
        for axes in (self.left, self.right):
            self._style(axes)

    def label(self, axes: "Axes", title: str, x: str, y: str) -> None:
        """What a panel shows, with units."""
        axes.set_title(title, fontsize=9.5, color=self.palette.ink)
        axes.set_xlabel(x, fontsize=8.5, color=self.palette.faint_ink)
        axes.set_ylabel(y, fontsize=8.5, color=self.palette.faint_ink)

    def note(self, axes: "Axes", text: str) -> None:
        """A panel with nothing to draw says why."""
        axes.text(
            0.5,
            0.5,
            text,
            ha="center",
            va="center",
            transform=axes.transAxes,
            fontsize=9,
            color=self.palette.faint_ink,
        )

    def log_seconds(self, axes: "Axes", values_s: Sequence[float]) -> None:
        """A logarithmic axis of durations, with labels like 20 ms wherever it begins and ends."""
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

        least, most = min(values_s), max(values_s)
        if most < 1.2 * least:
            # One value: a decade around it.
            least, most = least / 3, most * 3
        axes.set_xscale("log")
        axes.set_xlim(least / 1.05, most * 1.05)
        decades = most / least
        steps = (1.0, 2.0, 5.0) if decades < 50 else (1.0, 3.0) if decades < 1000 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(unit="s", sep=" "))
        axes.xaxis.set_minor_formatter(NullFormatter())

    def log_counts(self, axes: "Axes") -> None:
        """A logarithmic axis of whole numbers."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_xscale("log")
        least, most = axes.get_xlim()
        steps = (1.0, 2.0, 5.0) if most / least < 500 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))

    def percent(self, axes: "Axes") -> None:
        """A vertical axis of shares, 0 to 100 %."""
        from matplotlib.ticker import PercentFormatter

        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    def log_percent(self, axes: "Axes", least: float) -> None:
        """A logarithmic vertical axis of shares, down to `least`."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_yscale("log")
        axes.set_ylim(least, 1.0)
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))

    def goal(self, axes: "Axes", seconds: float) -> None:
        """A thin vertical line, named in the legend."""
        text = f"goal: {seconds:g} s" if seconds >= 1 else f"goal: {1000 * seconds:g} ms"
        axes.axvline(seconds, label=text, zorder=1, **self._thin())

    def level(self, axes: "Axes", share: float) -> None:
        """A thin horizontal line, named at its left end."""
        axes.axhline(share, zorder=1, **self._thin())
        axes.text(
            0.02,
            share,
            f"{share:.0%}",
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            color=self.palette.faint_ink,
            ha="left",
            va="top",
        )

    def png(self) -> bytes:
        """WIDTH_PX by HEIGHT_PX; the same bytes for the same figure."""
        handles, names = self.left.get_legend_handles_labels()
        if not names:
            handles, names = self.right.get_legend_handles_labels()
        if names:
            self.figure.legend(
                handles,
                names,
                loc="outside lower center",
                ncols=max(1, _LEGEND_CHARACTERS // (max(map(len, names)) + 8)),
                fontsize=8.5,
                frameon=False,
                labelcolor=self.palette.ink,
            )
        out = BytesIO()
        # Without the version of the library: the picture is the same.
        self.figure.savefig(
            out, format="png", dpi=_DPI, facecolor=self.palette.ground, metadata={"Software": None}
        )
        return out.getvalue()

    def _thin(self) -> dict[str, Any]:
        return {"color": self.palette.faint_ink, "linewidth": 1, "linestyle": (0, (4, 3))}

    def _style(self, axes: "Axes") -> None:
        axes.set_facecolor(self.palette.ground)
        axes.grid(visible=True, color=self.palette.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=self.palette.faint_ink, labelsize=8, length=3)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(self.palette.faint_ink)
