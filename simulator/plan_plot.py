"""A plot of plans: how much of a load clusters of each size and shape serve."""

from collections.abc import Sequence

from simulator.planning import ClusterPlan
from simulator.report.canvas import Canvas, Look
from simulator.report.palette import LIGHT, Palette


def plan_picture(plans: Sequence[ClusterPlan], palette: Palette = LIGHT) -> bytes:
    """PNG: attainment over GPUs, and over the share of prefill workers. Raises: PlotsUnavailable.

    Runs that were given up are left out.
    """
    facts = plans[0].trials[0].result.facts
    canvas = Canvas(palette, f"{facts.trace} on {facts.hardware}: clusters that were tried")
    most, has_splits = 1, False
    for number, plan in enumerate(plans):
        look = Look.of(palette, number)
        points = [
            (trial.result.record.num_gpus, trial.attainment)
            for trial in plan.best_of_size
            if trial.is_complete
        ]
        most = max([most, *(gpus for gpus, _ in points)])
        options = {**look.line(), "marker": look.marker, "markersize": 4.5, "label": plan.policy}
        canvas.left.plot([x for x, _ in points], [y for _, y in points], **options)
        has_splits |= _draw_splits(canvas, plan, look)
    canvas.left.set_xlim(0, 1.05 * most)
    canvas.left.locator_params(axis="x", integer=True)
    canvas.right.set_xlim(0, 1)
    for axes in (canvas.left, canvas.right):
        canvas.percent(axes)
        canvas.level(axes, plans[0].search.target)
    if not has_splits:
        canvas.note(canvas.right, "no cluster with prefill and decode apart was tried")
    met = "requests that met their goals"
    canvas.label(canvas.left, "Best shape of each size", "GPUs", met)
    canvas.label(canvas.right, "Shapes of one size", "share of prefill workers", met)
    return canvas.png()


def _draw_splits(canvas: Canvas, plan: ClusterPlan, look: Look) -> bool:
    """One line for each size that was tried in several shapes, the smallest strongest."""
    by_size: dict[int, list[tuple[float, float]]] = {}
    for (spec, _), trial in zip(plan.found.assessed, plan.trials, strict=True):
        if spec.num_prefill and trial.is_complete:
            share = spec.num_prefill / spec.num_workers
            by_size.setdefault(spec.num_workers, []).append((share, trial.attainment))
    for position, size in enumerate(sorted(by_size)):
        points = sorted(by_size[size])
        options = {**look.line(), "marker": look.marker, "markersize": 4}
        options["alpha"] = max(0.25, 1 - 0.2 * position)
        canvas.right.plot([x for x, _ in points], [y for _, y in points], **options)
        x, y = points[-1]
        canvas.right.annotate(str(size), (x, y), xytext=(3, 3), textcoords="offset points",
                              fontsize=7.5, color=canvas.palette.faint_ink)  # fmt: skip
    return bool(by_size)
