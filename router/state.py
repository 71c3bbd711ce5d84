"""What the router knows. The objects that decide share it; none of them performs anything."""

from dataclasses import dataclass, field

from router.fleet import Fleet
from router.legs import LegBook
from router.sequence import Request, Sequence
from scheduling.ids import RequestId, TaskId
from scheduling.policy import Policy
from scheduling.prediction import LengthPredictor
from scheduling.task_queue import TaskQueue


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """The few numbers that the core decides by."""

    max_prompt_queue: int = 1024
    max_retries_per_task: int = 3
    # A prefill worker gets new prompts while its backlog is below this.
    max_backlog_tokens: int = 1024


@dataclass(slots=True)
class Counters:
    """Totals since the start, for status and metrics."""

    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_migrations: int = 0


@dataclass(slots=True)
class RouterState:
    """Everything the router knows; its parts are shared by the objects that decide."""

    policy: Policy
    predictor: LengthPredictor
    settings: RouterSettings
    prompt_queue: TaskQueue
    generation_queue: TaskQueue
    fleet: Fleet
    legs: LegBook
    request_by_id: dict[RequestId, Request] = field(default_factory=dict)
    # The present try of each live sequence.
    sequence_by_task: dict[TaskId, Sequence] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
