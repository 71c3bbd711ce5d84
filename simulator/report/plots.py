"""All plots of a report, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.metrics.summary import RunResult
from simulator.report.canvas import Canvas
from simulator.report.latency_plots import between_tokens, first_token
from simulator.report.palette import LIGHT, Palette
from simulator.report.rate_plots import goodput
from simulator.report.scenes import Scene, scenes
from simulator.report.time_plots import iteration_size, kvc, queues


@dataclass(frozen=True, slots=True)
class Plot:
    """A kind of plot; `draw` returns None where the runs have nothing to show."""

    # Of its file.
    name: str
    # What a reader sees there.
    caption: str
    draw: Callable[[Scene, Palette], Canvas | None]


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot of one scene."""

    # "ttft", or "ttft-2" in a second scene.
    name: str
    caption: str
    png: bytes


PLOTS: tuple[Plot, ...] = (
    Plot("goodput", "Goodput and attainment over the offered rate.", goodput),
    Plot(
        "ttft",
        "Time to the first token: everybody on the left, the slow ones on the right.",
        first_token,
    ),
    Plot(
        "tbt",
        "Time between tokens: all gaps on the left, the long ones on the right.",
        between_tokens,
    ),
    Plot("kvc", "Blocks that sequences own, and the part of them that is written.", kvc),
    Plot("queues", "Prompt tasks (PT) and generation tasks (GT) that wait in the router.", queues),
    Plot("iterations", "Tokens of an iteration, over time and as a distribution.", iteration_size),
)


def pictures(
    results: Sequence[RunResult], palette: Palette = LIGHT, plots: Sequence[Plot] = PLOTS
) -> list[Picture]:
    """Every plot that the runs have something for. Raises: PlotsUnavailable."""
    found = []
    for number, scene in enumerate(scenes(results), start=1):
        for plot in plots:
            canvas = plot.draw(scene, palette)
            if canvas is not None:
                name = plot.name if number == 1 else f"{plot.name}-{number}"
                found.append(Picture(name, plot.caption, canvas.png()))
    return found


def write_pictures(folder: Path, results: Sequence[RunResult]) -> list[Path]:
    """NAME.png for each plot, in a folder that is made. Raises: PlotsUnavailable, OSError."""
    drawn = pictures(results)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in drawn:
        path = folder / f"{picture.name}.png"
        path.write_bytes(picture.png)
        paths.append(path)
    return paths
