"""What changes in the course of a run: KVC, queues, the size of iterations."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator.metrics.distribution import Distribution
from simulator.metrics.summary import RunResult
from simulator.metrics.time_bins import Series
from simulator.report.canvas import Canvas, Look
from simulator.report.latency_plots import SHARES
from simulator.report.palette import Palette
from simulator.report.scenes import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of a line over time: more cannot be told apart.
MAX_POINTS = 128
# (least seconds of a run, unit, seconds of the unit).
_UNITS = ((3 * 3600, "h", 3600), (300, "min", 60), (0, "s", 1))


def kvc(scene: Scene, palette: Palette) -> Canvas:
    """Blocks that are owned, and the part of them that is written, of all blocks."""
    canvas = Canvas(palette, scene.titled("KV cache of all workers"))
    unit = _over_time(canvas, canvas.left, scene, lambda run: run.record.kvc_allocated_share)
    _over_time(canvas, canvas.right, scene, lambda run: run.record.kvc_written_share)
    for axes in (canvas.left, canvas.right):
        canvas.percent(axes)
    canvas.label(canvas.left, "Allocated to a sequence", unit, "share of all blocks")
    canvas.label(canvas.right, "Written", unit, "share of all blocks")
    return canvas


def queues(scene: Scene, palette: Palette) -> Canvas:
    """Lengths of the router's two queues."""
    canvas = Canvas(palette, scene.titled("queues of the router"))
    unit = _over_time(canvas, canvas.left, scene, lambda run: run.record.prompt_queue)
    _over_time(canvas, canvas.right, scene, lambda run: run.record.generation_queue)
    for axes in (canvas.left, canvas.right):
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    canvas.label(canvas.left, "Prompt tasks that wait (PT)", unit, "tasks")
    canvas.label(canvas.right, "Generation tasks that wait (GT)", unit, "tasks")
    return canvas


def iteration_size(scene: Scene, palette: Palette) -> Canvas:
    """Tokens of an iteration: means over time, and the distribution."""
    canvas = Canvas(palette, scene.titled("tokens of an iteration"))
    unit = _over_time(canvas, canvas.left, scene, lambda run: run.record.iteration_tokens)
    canvas.left.set_ylim(bottom=0)
    canvas.label(canvas.left, "Mean over all workers", unit, "tokens per iteration")
    for number, name, run in scene.shown:
        every = Distribution()
        for role in run.record.roles:
            every.merge(role.iteration_tokens)
        if every.count:
            values = [max(1.0, one) for one in every.quantiles(SHARES)]
            look = Look.of(palette, number)
            canvas.right.plot(values, SHARES, label=name, **look.line())
    canvas.log_counts(canvas.right)
    canvas.percent(canvas.right)
    canvas.label(canvas.right, "As small or smaller", "tokens (logarithmic)", "share of iterations")
    return canvas


def thinned(series: Series, max_points: int = MAX_POINTS) -> Series:
    """Means of neighbouring bins, so that at most so many are left."""
    step = math.ceil(len(series.values) / max_points)
    if step <= 1:
        return series
    parts = (series.values[at : at + step] for at in range(0, len(series.values), step))
    known = ([value for value in part if not math.isnan(value)] for part in parts)
    means = (math.fsum(part) / len(part) if part else math.nan for part in known)
    return Series(series.width_s * step, tuple(means))


def _over_time(
    canvas: Canvas, axes: "Axes", scene: Scene, of: Callable[[RunResult], Series]
) -> str:
    """Draw a line for each run; returns the label of the axis of time."""
    longest_s = max(run.record.end_s for _, _, run in scene.shown)
    name_of_unit, unit_s = next((name, s) for least, name, s in _UNITS if longest_s >= least)
    for number, name, run in scene.shown:
        series = thinned(of(run))
        pairs = zip(series.middles_s, series.values, strict=True)
        points = [(at_s / unit_s, value) for at_s, value in pairs if not math.isnan(value)]
        if points:
            times, values = zip(*points, strict=True)
            look = Look.of(canvas.palette, number)
            axes.plot(times, values, label=name, **look.line())
    axes.set_xlim(0, max(longest_s, 1e-6) / unit_s)
    return f"simulated time ({name_of_unit})"
