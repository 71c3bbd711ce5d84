"""For tests: answers on a decode worker's core, some of which get no more blocks."""

from collections.abc import Container
from dataclasses import dataclass
from math import inf

from decode_worker.core import DecodeCore
from scheduling.ids import TaskId
from scheduling.messages import (
    AdmitGeneration,
    AdmitPrompt,
    Command,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    Report,
    SequenceSpec,
    StartDecode,
    SwappedOut,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    KvArrived,
    SampledOutput,
    SendReport,
    SessionId,
    StepFinished,
    WorkerAction,
)

BLOCK_SIZE = 4
# What the clock says while commands arrive.
NOW = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A task, and how many blocks of `BLOCK_SIZE` tokens it begins with."""

    name: str
    num_prompt: int
    num_blocks: int
    max_tokens: int = 20
    # At the router, at most `NOW`.
    arrived_at_s: float = 0.0
    tpot_s: float = inf
    num_predicted_tokens: int = 0

    @property
    def task_id(self) -> TaskId:
        """The only try."""
        return TaskId(f"{self.name}/0")

    @property
    def spec(self) -> SequenceSpec:
        """No two prompts have a token in common."""
        first = 1000 * sum(self.name.encode())
        prompt = tuple(range(first, first + self.num_prompt))
        stop = StopParams(self.max_tokens)
        return SequenceSpec(
            prompt,
            (),
            SamplingParams(),
            stop,
            tpot_s=self.tpot_s,
            num_predicted_tokens=self.num_predicted_tokens,
        )


def begin(core: DecodeCore, each: Answer, *, in_place: bool) -> None:
    """Its prompt is to be computed here; or it was elsewhere, and its KV has arrived."""
    age_s = NOW - each.arrived_at_s
    if in_place:
        _send(core, AdmitPrompt(each.task_id, each.spec, each.num_blocks, age_s=age_s))
        return
    _send(
        core,
        AdmitGeneration(
            each.task_id,
            each.spec,
            each.num_blocks,
            num_kv_blocks=-(-each.num_prompt // BLOCK_SIZE),
            transfer_id=f"{each.task_id}@d",
            age_s=age_s,
        ),
    )
    _send(core, StartDecode(each.task_id, (7,)))
    core.handle(KvArrived(each.task_id))
    core.check_invariants()


def finish(core: DecodeCore, plan: StepPlan) -> list[Report]:
    """The planned step ends, with a token for everybody; nobody's is the last."""
    sampling = (chunk for chunk in plan.chunks if chunk.samples)
    outputs = tuple(SampledOutput(chunk.slot, 8, "y") for chunk in sampling)
    told = reports(core.handle(StepFinished(outputs)))
    core.check_invariants()
    return told


def who_makes_room(
    core: DecodeCore, denied: Container[str], num_steps: int = 4
) -> Preempted | SwappedOut | None:
    """The first that does within so many steps; None where nobody does.

    Answers of these names get no more blocks; the growth of others finds no reply.
    """
    for _ in range(num_steps):
        actions, plan = core.plan(NOW)
        heard = reports(actions) + ([] if plan is None else finish(core, plan))
        for report in heard:
            if isinstance(report, Preempted | SwappedOut):
                return report
            if isinstance(report, GrowthNeeded) and report.task_id.partition("/")[0] in denied:
                _send(core, GrantGrowth(report.task_id, 0))
    return None


def reports(actions: list[WorkerAction]) -> list[Report]:
    """What the router is told."""
    return [action.report for action in actions if isinstance(action, SendReport)]


def _send(core: DecodeCore, command: Command) -> None:
    core.handle(CommandArrived(SessionId(1), command, at_s=NOW))
    core.check_invariants()
