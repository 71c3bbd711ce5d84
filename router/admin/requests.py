"""What operators ask about requests: which there are, what happened to one, and that they end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from router.admin.name_lookup import NameLookup
from router.ended_requests import RequestRecord, record_of
from router.events import Event, OperatorCancelled
from router.state import RouterState
from scheduling.errors import InvalidRequest
from scheduling.ids import RequestId
from scheduling.lifecycle import TERMINAL, Phase

_MAX_CANCELLED = 1000
_MAX_REASON_CHARS = 200
_STATES = ("", "running", "ended")
_PHASES = ("", *(phase.value for phase in Phase))
_CLASSES = ("", "interactive", "standard", "batch")
_ADVICE = "look at `tandem admin requests`"
_WORKER_ADVICE = "look at `tandem admin workers`"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests; empty fields match all."""

    # "running" or "ended".
    state: str = ""
    tenant: str = ""
    request_class: str = ""
    # Of at least one answer.
    phase: str = ""
    # Of at least one answer, on either leg.
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What became of one request that was to end."""

    request_id: RequestId
    # False where it had ended before.
    cancelled: bool
    # "cancelled", or how it had ended.
    state: str


def matching_requests(
    state: RouterState, wanted: RequestFilter, workers: Iterable[str] = ()
) -> list[RequestRecord]:
    """Running ones from the oldest on, then ended ones from the latest back.

    `workers`: those that may be named beside the ones that served any of these requests.
    Raises: InvalidRequest for a filter that nothing could ever match, UnknownName for a worker.
    """
    _require("state", wanted.state, _STATES)
    _require("phase", wanted.phase, _PHASES)
    _require("request_class", wanted.request_class, _CLASSES)
    if wanted.worker_id:
        known = NameLookup("worker", chain(workers, _serving(state)), _WORKER_ADVICE)
        wanted = replace(wanted, worker_id=known.resolve(wanted.worker_id))
    return [record for record in _records(state, wanted) if _matches(record, wanted)]


def one_request(state: RouterState, given: str) -> RequestRecord:
    """One that runs or ended recently. Raises: UnknownName, InvalidRequest."""
    known = (*state.request_by_id, *(record.request_id for record in state.ended))
    request_id = RequestId(NameLookup("request", known, _ADVICE).resolve(_without_task(given)))
    running = state.request_by_id.get(request_id)
    record = state.ended.get(request_id) if running is None else record_of(running)
    assert record is not None
    return record


def cancel_requests(
    state: RouterState,
    given: Sequence[str],
    operator: str,
    reason: str,
    apply: Callable[[Event], None],
) -> list[CancelOutcome]:
    """End requests, all or, where an id is wrong, none. Raises: UnknownName, InvalidRequest."""
    if not 1 <= len(given) <= _MAX_CANCELLED:
        raise InvalidRequest("request_ids", f"{len(given)} of them; name 1 to {_MAX_CANCELLED}")
    for field, text in (("operator", operator), ("reason", reason)):
        if len(text) > _MAX_REASON_CHARS:
            raise InvalidRequest(field, f"is too long; use at most {_MAX_REASON_CHARS} characters")
    running = NameLookup("request", state.request_by_id, _ADVICE)
    outcomes = [_outcome(state, running, name) for name in given]
    message = _cancel_message(operator, reason)
    for outcome in outcomes:
        if outcome.cancelled:
            apply(OperatorCancelled(outcome.request_id, message))
    return outcomes


def _outcome(state: RouterState, running: NameLookup, given: str) -> CancelOutcome:
    request_id = RequestId(_without_task(given))
    ended = state.ended.get(request_id)
    if ended is not None and request_id not in state.request_by_id:
        return CancelOutcome(request_id, False, ended.state)
    found = running.resolve(request_id)
    return CancelOutcome(RequestId(found), True, Phase.CANCELLED.value)


def _cancel_message(operator: str, reason: str) -> str:
    who = f"an operator ({_one_line(operator)})" if operator else "an operator"
    why = f": {_one_line(reason)}" if reason else ""
    return f"cancelled by {who}{why}; ask the operator of this service before you try again"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _records(state: RouterState, wanted: RequestFilter) -> Iterator[RequestRecord]:
    if wanted.state != "ended":
        for running in state.request_by_id.values():
            yield record_of(running)
    if wanted.state != "running":
        yield from state.ended


def _serving(state: RouterState) -> Iterator[str]:
    """Also of workers that have left."""
    for record in _records(state, RequestFilter()):
        for answer in record.answers:
            yield from filter(None, (answer.prefill_worker, answer.decode_worker))


def _matches(record: RequestRecord, wanted: RequestFilter) -> bool:
    answers = record.answers
    if wanted.phase and all(answer.phase.value != wanted.phase for answer in answers):
        return False
    if wanted.worker_id and not any(
        # Where it is, or for an ended request where it was.
        wanted.worker_id in (answer.prefill_worker, answer.decode_worker)
        for answer in answers
        if record.ended_at_s is not None or answer.phase not in TERMINAL
    ):
        return False
    is_tenants = wanted.tenant in ("", record.tenant)
    return is_tenants and wanted.request_class in ("", record.request_class)


def _require(field: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        legal = ", ".join(name for name in known if name)
        raise InvalidRequest(field, f"{given!r} is unknown; use one of {legal}")


def _without_task(given: str) -> str:
    """The request of a task id; what was typed otherwise. A request id has no slash."""
    return given.partition("/")[0]
