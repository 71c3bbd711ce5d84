"""Tells a fresh router core what a recorded one was told, and compares what the two wanted done."""

from collections.abc import Callable
from dataclasses import dataclass

from router.core import RouterCore
from router.events import RequestArrived
from router.recording.entries import Handled, about, handle, is_same, outcome_of
from router.recording.file import Recording, RecordingUnreadable
from router.recording.values import Encoder, Json
from scheduling.policy_settings import PolicyInvalid


@dataclass(frozen=True, slots=True)
class Difference:
    """The first event of which something else came."""

    handled: Handled
    # Since the first event.
    at_s: float
    # What came of it now, as `outcome_of` says it.
    came: Json

    @property
    def index(self) -> int | None:
        """Of the first action that differs; None where one of the two outcomes is an error."""
        recorded = self.handled.outcome
        if type(recorded) is not list or type(self.came) is not list:
            return None
        shorter = min(len(recorded), len(self.came))
        pairs = zip(recorded[:shorter], self.came[:shorter], strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if not is_same(a, b)), shorter)

    @property
    def pair(self) -> tuple[Json, Json]:
        """What was recorded and what came: that action of each, or the whole outcomes."""
        recorded, index = self.handled.outcome, self.index
        if index is None:
            return recorded, self.came
        return _at(recorded, index), _at(self.came, index)

    def line(self) -> str:
        """Which event."""
        where = f"event {self.handled.number}, {self.at_s:.3f} s after the first one, "
        where += about(self.handled.event)
        if self.index is None:
            return f"{where}: another outcome"
        num_recorded, num_came = len(self.handled.outcome), len(self.came)
        return (
            f"{where}: action {self.index + 1} differs ({num_recorded} recorded, {num_came} came)"
        )


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far it went."""

    num_events: int
    num_requests: int
    # From the first event to the last.
    span_s: float
    difference: Difference | None


def replay(
    recording: Recording,
    watch: Callable[[Handled, Json], None] = lambda handled, came: None,
    *,
    is_checking: bool = False,
) -> Replayed:
    """To the end, or to the first difference; `watch` is told every event and what came of it now.

    `is_checking`: look after every event whether what the core knows fits together.
    Raises: RecordingUnreadable, OSError.
    """
    core = _new_core(recording)
    encoder = Encoder(is_abridging=True)
    num_events = num_requests = 0
    began_at_s = ended_at_s = 0.0
    for handled in recording.events():
        num_events += 1
        num_requests += isinstance(handled.event, RequestArrived)
        ended_at_s = handled.now
        if num_events == 1:
            began_at_s = handled.now
        came = outcome_of(handle(core, handled.event, handled.now), encoder)
        watch(handled, came)
        if is_checking and is_same(came, handled.outcome):
            came = _checked(core, came)
        if not is_same(came, handled.outcome):
            difference = Difference(handled, ended_at_s - began_at_s, came)
            return Replayed(num_events, num_requests, ended_at_s - began_at_s, difference)
    return Replayed(num_events, num_requests, ended_at_s - began_at_s, None)


def _new_core(recording: Recording) -> RouterCore:
    setup = recording.head.setup
    try:
        return setup.new_core()
    except PolicyInvalid as error:
        problem = f"this version has no policy {setup.policy!r}"
        way_out = f"replay it with Tandem {recording.head.product}"
        raise RecordingUnreadable(recording.path, 1, problem, way_out) from error


def _checked(core: RouterCore, came: Json) -> Json:
    try:
        core.check_invariants()
    except AssertionError as error:
        return {"invariants broken": str(error), "outcome": came}
    return came


def _at(actions: list[Json], index: int) -> Json:
    return actions[index] if index < len(actions) else "nothing"
