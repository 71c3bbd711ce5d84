"""What operators may still ask about a request, while it runs and for a while after its end.

A record holds counts, names and times: no token of the prompt or of an answer.
"""

from collections import OrderedDict
from collections.abc import Iterator

from router.sequence import Request, Sequence
from router.timeline import Timeline
from scheduling.errors import TandemError
from scheduling.ids import RequestId
from scheduling.lifecycle import Phase
from scheduling.value import value

# Measured on CPython 3.11, rounded up; strings are counted besides.
_BYTES_PER_REQUEST, _BYTES_PER_ANSWER, _BYTES_PER_ENTRY = 800, 500, 250


@value
class AnswerRecord:
    """One answer, as far as it has come."""

    index: int
    phase: Phase
    phase_since_s: float
    num_output_tokens: int
    prefill_worker: str
    decode_worker: str
    num_tries: int
    num_preemptions: int
    # Failures and evacuations.
    num_migrations: int
    timeline: Timeline


@value
class RequestRecord:
    """One request, as far as it has come."""

    request_id: RequestId
    tenant: str
    request_class: str
    session: str
    arrival_at_s: float
    deadline_at_s: float | None
    # None while it runs.
    ended_at_s: float | None
    num_prompt_tokens: int
    max_tokens: int
    # "" unless it failed or was cancelled.
    error_code: str
    error_message: str
    answers: tuple[AnswerRecord, ...]

    @property
    def state(self) -> str:
        """ "running", "finished", "failed" or "cancelled"."""
        if self.ended_at_s is None:
            return "running"
        if not self.error_code:
            return Phase.FINISHED.value
        has_failed = any(answer.phase is Phase.FAILED for answer in self.answers)
        return (Phase.FAILED if has_failed else Phase.CANCELLED).value

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, as an upper bound."""
        num_entries = 0
        chars = len(self.request_id) + len(self.tenant) + len(self.session)
        chars += len(self.error_message)
        for answer in self.answers:
            num_entries += len(answer.timeline.entries)
            for entry in answer.timeline.entries:
                chars += len(entry.reason)
        return (
            _BYTES_PER_REQUEST
            + _BYTES_PER_ANSWER * len(self.answers)
            + _BYTES_PER_ENTRY * num_entries
            # Four bytes where one character of the text is a rare one.
            + 4 * chars
        )


def record_of(request: Request, error: TandemError | None = None) -> RequestRecord:
    """The present state, ready to be kept: timelines are shared, all else is copied."""
    spec, sequences = request.spec, request.sequences
    ended_at_s = max((s.phase_since_s for s in sequences), default=request.arrival_at_s)
    return RequestRecord(
        request_id=spec.request_id,
        tenant=spec.tenant,
        request_class=spec.request_class,
        session=spec.session,
        arrival_at_s=request.arrival_at_s,
        deadline_at_s=request.deadline_at_s,
        ended_at_s=ended_at_s if request.is_over else None,
        num_prompt_tokens=len(spec.prompt_token_ids),
        max_tokens=spec.stop.max_tokens,
        error_code="" if error is None else error.code,
        error_message="" if error is None else error.message,
        answers=tuple(map(_answer, sequences)),
    )


class EndedRequests:
    """The latest ended requests; the oldest make room, by number and by bytes."""

    def __init__(self, max_requests: int = 1000, max_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._record_by_id: OrderedDict[RequestId, RequestRecord] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._record_by_id)

    def __iter__(self) -> Iterator[RequestRecord]:
        """From the latest back."""
        return reversed(self._record_by_id.values())

    def get(self, request_id: RequestId) -> RequestRecord | None:
        """The latest of this id, or None."""
        return self._record_by_id.get(request_id)

    def add(self, record: RequestRecord) -> None:
        """A request ended; an earlier one of the same id is forgotten."""
        self._forget(record.request_id)
        self._record_by_id[record.request_id] = record
        self.num_bytes += record.num_bytes
        while self._record_by_id and (
            len(self._record_by_id) > self._max_requests or self.num_bytes > self._max_bytes
        ):
            self._forget(next(iter(self._record_by_id)))

    def _forget(self, request_id: RequestId) -> None:
        record = self._record_by_id.pop(request_id, None)
        if record is not None:
            self.num_bytes -= record.num_bytes


def _answer(sequence: Sequence) -> AnswerRecord:
    return AnswerRecord(
        index=sequence.index,
        phase=sequence.phase,
        phase_since_s=sequence.phase_since_s,
        num_output_tokens=len(sequence.output_token_ids),
        prefill_worker=sequence.prefill_worker,
        decode_worker=sequence.decode_worker,
        num_tries=sequence.num_tries,
        num_preemptions=sequence.preemptions.num_times,
        num_migrations=sequence.num_migrations + sequence.num_evacuations,
        timeline=sequence.timeline,
    )
