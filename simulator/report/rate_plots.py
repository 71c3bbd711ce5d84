"""How much a cluster serves in time as more is asked of it."""

from simulator.report.canvas import Canvas, Look
from simulator.report.palette import Palette
from simulator.report.scenes import GOAL_ATTAINMENT, Scene


def goodput(scene: Scene, palette: Palette) -> Canvas | None:
    """Goodput and attainment over the offered rate; None unless several rates were run."""
    if len(scene.rate_scales) < 2:
        return None
    canvas = Canvas(palette, f"{scene.trace} on {scene.hardware}: goodput over the offered rate")
    most = 0.0
    for number, line in enumerate(scene.lines):
        points = [(run.offered_rps, run) for run in line.results]
        known = [(rate, run) for rate, run in points if rate is not None]
        rates = [rate for rate, _ in known]
        most = max([most, *rates])
        look = Look.of(palette, number)
        options = {**look.line(), "marker": look.marker, "markersize": 4.5, "label": line.label}
        canvas.left.plot(rates, [run.goodput_rps for _, run in known], **options)
        canvas.right.plot(rates, [run.slo_attainment for _, run in known], **options)
    canvas.left.plot([0, most], [0, most], color=palette.faint_ink, linewidth=1, linestyle=":")
    for axes in (canvas.left, canvas.right):
        axes.set_xlim(0, 1.03 * most)
    canvas.left.set_ylim(0, 1.03 * most)
    canvas.percent(canvas.right)
    canvas.level(canvas.right, GOAL_ATTAINMENT)
    offered = "offered (requests/s)"
    canvas.label(canvas.left, "Goodput; dotted: all that is offered", offered, "requests/s")
    canvas.label(canvas.right, "Requests that met all their goals", offered, "share of requests")
    return canvas
