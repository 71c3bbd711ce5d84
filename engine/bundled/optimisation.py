"""The training loop: AdamW, one cosine, short rows first and long rows at the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.bundled.network import TrainingNetwork
from engine.bundled.token_stream import BatchShape, TokenStream
from runtime.clock import Clock

_SECONDS_PER_LINE = 5.0
# The speed is measured over these steps; the first of each shape compile.
_FIRST_TIMED_STEP, _LAST_TIMED_STEP = 5, 30


_SHORT_ROWS = BatchShape(num_rows=16, length=256)
_LONG_ROWS = BatchShape(num_rows=2, length=2048)


class TrainingDiverged(Exception):
    """The loss is no longer a finite number, so no further step can help."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss of step {step} is not finite; try --no-compile, another --seed, or a lower "
            "learning rate in TrainingPlan"
        )
        self.step = step


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long and how to train. Exactly one of `num_steps` and `minutes` decides the length."""

    num_steps: int | None
    # Turned into steps by the speed of the first ones; repeat a run with the steps it reports.
    minutes: float
    short_rows: BatchShape = _SHORT_ROWS
    long_rows: BatchShape = _LONG_ROWS
    # This share of the steps has long rows, so that every position of the context is used.
    long_fraction: float = 0.12
    # Long rows come last, since they are slow, or spread out, since a network that has learned
    # them forgets them among short ones.
    spreads_long_rows: bool = False
    peak_learning_rate: float = 3e-3
    final_fraction: float = 0.02
    num_warmup_steps: int = 60
    weight_decay: float = 0.1
    use_compile: bool = True


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run did."""

    num_steps: int
    num_tokens: int
    num_epochs: int
    duration_s: float
    final_loss: float


def train(
    network: TrainingNetwork,
    stream: TokenStream,
    plan: TrainingPlan,
    clock: Clock,
    report: Callable[[str], None],
) -> TrainingResult:
    """Train in place; `report` gets a line every few seconds.

    Raises: TrainingDiverged.
    """
    started_at_s = clock.now()
    optimiser = _optimiser(network, plan)
    losses_of = torch.compile(network.losses, dynamic=False) if plan.use_compile else network.losses
    num_steps = plan.num_steps
    loss, num_tokens, step = math.nan, 0, 0
    timed_from_s = printed_at_s = started_at_s
    while num_steps is None or step < num_steps:
        rows = plan.long_rows if has_long_rows(step, num_steps, plan) else plan.short_rows
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, num_steps, plan)
        batch_loss = _step(network, losses_of, stream.next_batch(rows), optimiser)
        if not math.isfinite(batch_loss):
            raise TrainingDiverged(step)
        loss = batch_loss if math.isnan(loss) else 0.95 * loss + 0.05 * batch_loss
        step, num_tokens, now = step + 1, num_tokens + rows.num_tokens, clock.now()
        if step == _FIRST_TIMED_STEP:
            timed_from_s = now
        if num_steps is None and step == _LAST_TIMED_STEP:
            seconds_per_step = (now - timed_from_s) / (_LAST_TIMED_STEP - _FIRST_TIMED_STEP)
            left_s = plan.minutes * 60 - (now - started_at_s)
            num_steps = step + max(1, int(left_s / seconds_per_step))
        if now - printed_at_s >= _SECONDS_PER_LINE or step == num_steps:
            printed_at_s = now
            report(_progress_line(step, num_steps, loss, num_tokens, now - started_at_s))
    return TrainingResult(
        step, num_tokens, stream.num_epochs_begun, clock.now() - started_at_s, loss
    )


def learning_rate(step: int, num_steps: int | None, plan: TrainingPlan) -> float:
    """Linear warm-up, then half a cosine; constant while the length of the run is not known."""
    warmup = min(1.0, (step + 1) / plan.num_warmup_steps)
    if num_steps is None:
        return plan.peak_learning_rate * warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps)))
    floor = plan.final_fraction
    return plan.peak_learning_rate * warmup * (floor + (1 - floor) * cosine)


def has_long_rows(step: int, num_steps: int | None, plan: TrainingPlan) -> bool:
    """Whether a step is one of the `long_fraction` that train the far end of the context."""
    if plan.spreads_long_rows:
        return int((step + 1) * plan.long_fraction) > int(step * plan.long_fraction)
    return num_steps is not None and step >= num_steps * (1 - plan.long_fraction)


def _optimiser(network: TrainingNetwork, plan: TrainingPlan) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.peak_learning_rate, betas=(0.9, 0.95), fused=True)


def _step(
    network: TrainingNetwork,
    losses_of: Callable[[Tensor], Tensor],
    batch: Tensor,
    optimiser: torch.optim.Optimizer,
) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses_of(batch).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def _progress_line(
    step: int, num_steps: int | None, loss: float, num_tokens: int, elapsed_s: float
) -> str:
    left = "unknown"
    if num_steps is not None:
        left = f"{elapsed_s / step * (num_steps - step):.0f} s"
    return (
        f"step {step}/{num_steps or '?'}  loss {loss:.3f}  "
        f"{num_tokens / max(elapsed_s, 1e-9):.0f} tokens/s  left {left}"
    )
