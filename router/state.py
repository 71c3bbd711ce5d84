"""What the router knows. The objects that decide share it; none of them performs anything."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from router.answer_lines import AnswerLines
from router.deadlines import Deadlines
from router.ended_requests import EndedRequests
from router.fleet import Fleet
from router.legs import LegBook
from router.sequence import Request, Sequence
from scheduling.generation_queue import GenerationQueue
from scheduling.ids import RequestId, TaskId, WorkerId, task_id_of
from scheduling.length_calibration import CalibrationLog
from scheduling.lifecycle import Phase
from scheduling.policy import Policy
from scheduling.prediction import LengthPredictor
from scheduling.token_pace import TokenPace
from scheduling.triage import TriagedQueue


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """The few numbers that the core decides by."""

    max_prompt_queue: int = 1024
    max_retries_per_task: int = 3
    # A worker gets new prompts while its backlog is below this; None: two of its own iterations.
    max_backlog_tokens: int | None = None
    # Prompt and answer that fit into one message to a worker.
    max_sequence_tokens: int = 2**31 - 1
    # Predictions that differ by less count as equal where tasks are chosen by length.
    length_quantum_tokens: int = 16
    # How long KV may be parked in host memory while other decode workers have room.
    max_parked_s: float = 1.0
    # Names this life of this router in task ids, so that no other's tasks have the same.
    task_tag: str = ""


@dataclass(slots=True)
class Counters:
    """Totals since the start, for status and metrics."""

    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_migrations: int = 0
    # Prompts that were sent to begin in blocks of others, and those that came back.
    num_guests: int = 0
    num_guests_refused: int = 0


@dataclass(slots=True)
class RoomWish:
    """Room that a worker was asked to make for a prompt that cannot wait."""

    task_id: TaskId
    worker_id: WorkerId
    asked_at_s: float
    # From then on it helps nobody.
    until_s: float
    is_answered: bool = False


@dataclass(slots=True)
class RouterState:
    """Everything the router knows; its parts are shared by the objects that decide."""

    policy: Policy
    predictor: LengthPredictor
    settings: RouterSettings
    prompt_queue: TriagedQueue
    generation_queue: GenerationQueue
    # The same, of those whose KV lies on a mixed worker: no other can take them.
    answer_lines: AnswerLines
    fleet: Fleet
    legs: LegBook
    request_by_id: dict[RequestId, Request] = field(default_factory=dict)
    # The present try of each live sequence.
    sequence_by_task: dict[TaskId, Sequence] = field(default_factory=dict)
    # Prompts larger than every pair that is connected now; they wait aside for a new worker,
    # where they hold nobody up.
    stranded: dict[TaskId, Sequence] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    counters: Counters = field(default_factory=Counters)
    prefill_pace: TokenPace = field(default_factory=TokenPace)
    # Of tokens after the first, while nothing kept the answer from running.
    answer_pace: TokenPace = field(default_factory=TokenPace)
    # What came of the predictions, of the latest answers.
    calibration: CalibrationLog = field(default_factory=CalibrationLog)
    # The latest, for the first prompt in line.
    room_wish: RoomWish | None = None
    # What operators may still ask about.
    ended: EndedRequests = field(default_factory=EndedRequests)
    # Of every new sequence; None but in a simulation.
    num_unheard: Callable[[Sequence], int] | None = None
    _attempts: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def is_anything_waiting(self) -> bool:
        """A prompt, an answer's KV on a prefill worker, or in host memory."""
        return (
            not self.prompt_queue.is_empty
            or len(self.generation_queue) > 0
            or len(self.answer_lines) > 0
            or self.fleet.num_with_parked > 0
        )

    @property
    def num_waiting_answers(self) -> int:
        """Computed prompts whose answers have no room yet."""
        return len(self.generation_queue) + len(self.answer_lines)

    def note_preemption(self, sequence: Sequence) -> None:
        """It makes room; doing so again before it went on is the same preemption."""
        if sequence.preemptions.note(sequence.num_output_tokens):
            self.counters.num_preemptions += 1

    def learn_from(self, sequence: Sequence) -> None:
        """Its answer is whole."""
        features = sequence.request.spec.features(sequence.request.arrival_at_s)
        num_tokens = len(sequence.output_token_ids)
        self.predictor.observe(features, num_tokens)
        self.calibration.add(features, sequence.first_predicted, num_tokens)
        if num_tokens - sequence.num_resumed_tokens > 1:
            num_gaps = num_tokens - sequence.num_resumed_tokens - 1
            self.answer_pace.observe(num_gaps, sequence.seconds_by_phase.get(Phase.DECODING, 0.0))

    def new_task_id(self, request_id: RequestId, index: int) -> TaskId:
        """An id that was never used: what is still said of an earlier task cannot be mistaken.

        A client may use its request id again, here or at another router, while a worker still
        cleans up after the first time.
        """
        return task_id_of(request_id, index, f"{self.settings.task_tag}{next(self._attempts)}")
