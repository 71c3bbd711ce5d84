"""Distributions of latencies: how many requests are as fast, and how slow the slowest are."""

from collections.abc import Callable

from simulator.metrics.distribution import Distribution
from simulator.metrics.summary import RunResult
from simulator.report.canvas import Canvas, Look
from simulator.report.palette import Palette
from simulator.report.scenes import Scene

# Points of a line, evenly spread over its shares; the tail has its own.
SHARES = tuple(number / 200 for number in range(201))
_TAIL_STEPS_PER_DECADE = 20
_MAX_TAIL_DECADES = 4
# A log axis has no 0: tokens that leave in one frame have no gap.
_LEAST_S = 1e-4


def first_token(scene: Scene, palette: Palette) -> Canvas:
    """Time from arrival to the first token."""
    return _latency(
        Canvas(palette, scene.titled("time to the first token")),
        scene,
        "time to the first token",
        lambda run: run.record.requests.ttft,
        lambda run: run.facts.ttft_goal_s,
    )


def between_tokens(scene: Scene, palette: Palette) -> Canvas:
    """All gaps between tokens of all requests."""
    return _latency(
        Canvas(palette, scene.titled("time between tokens")),
        scene,
        "time between two tokens",
        lambda run: run.record.requests.tbt,
        lambda run: run.facts.token_goal_s,
    )


def _latency(
    canvas: Canvas,
    scene: Scene,
    what: str,
    of: Callable[[RunResult], Distribution],
    goal_of: Callable[[RunResult], float | None],
) -> Canvas:
    seen: list[float] = []
    least_share = 1.0
    for number, name, run in scene.shown:
        distribution = of(run)
        if not distribution.count:
            continue
        tail = _tail_shares(distribution.count)
        values = [max(_LEAST_S, one) for one in distribution.quantiles((*SHARES, *tail))]
        seen += values
        least_share = min(least_share, 1 - tail[-1])
        options = {**Look.of(canvas.palette, number).line(), "label": name}
        canvas.left.plot(values[: len(SHARES)], SHARES, **options)
        canvas.right.plot(values[len(SHARES) :], [1 - share for share in tail], **options)
    canvas.label(canvas.left, "As fast or faster", what, "share")
    canvas.label(canvas.right, "Slower (logarithmic)", what, "share")
    if not seen:
        for axes in (canvas.left, canvas.right):
            canvas.note(axes, "nothing was measured")
        return canvas
    goal_s = goal_of(scene.shown[0][2])
    for axes in (canvas.left, canvas.right):
        canvas.log_seconds(axes, seen if goal_s is None else [*seen, goal_s])
        if goal_s is not None:
            canvas.goal(axes, goal_s)
    canvas.percent(canvas.left)
    canvas.log_percent(canvas.right, min(0.5, least_share))
    return canvas


def _tail_shares(count: int) -> list[float]:
    """Shares that leave 100 %, 89 % ... down to one value, or to one in 10,000."""
    shares = [0.0]
    for step in range(1, _MAX_TAIL_DECADES * _TAIL_STEPS_PER_DECADE + 1):
        left = 10 ** (-step / _TAIL_STEPS_PER_DECADE)
        if left * count < 1:
            break
        shares.append(1 - left)
    return shares
