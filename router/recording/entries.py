"""The lines of a recording: what the core is made from, then every event with what came of it.

JSON, one object a line; docs/simulator.md tells users what stands in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.core import RouterCore
from router.core_setup import CoreSetup
from router.events import Action, Event, RequestArrived
from router.recording.values import Encoder, Json, ValueMisfit, event_of
from router.state import RouterSettings
from scheduling.errors import TandemError

FORMAT = "tandem router recording"
# Raised by one whenever an older reader could misread a line.
FORMAT_VERSION = 1
# What to do about a file that is something else.
ANOTHER_FILE = "give a file that a router wrote where its record_dir is"
# Why nothing follows the last line: the router ended, or this much was wanted, or the disk or
# the processor did not keep up.
ENDED, FULL, TOO_SLOW = "ended", "full", "too slow"


class LineMisfit(ValueError):
    """A line is not what stands there in a recording."""

    def __init__(self, problem: str, way_out: str = "") -> None:
        super().__init__(problem)
        # "": the file is damaged, and another copy of it might not be.
        self.way_out = way_out


@dataclass(frozen=True, slots=True)
class RecordingHead:
    """The first line."""

    product: str
    router_id: str
    setup: CoreSetup


@dataclass(frozen=True, slots=True)
class Handled:
    """One event as it was recorded."""

    # From 1 on.
    number: int
    now: float
    event: Event
    # What came of it, as `outcome_of` says it.
    outcome: Json


@dataclass(frozen=True, slots=True)
class LastLine:
    """Nothing follows, and why."""

    reason: str


def handle(core: RouterCore, event: Event, now: float) -> list[Action] | Exception:
    """The actions of the core, or how it refused or failed."""
    try:
        return core.handle(event, now)
    except Exception as error:  # a defect is an outcome to compare as well
        return error


def outcome_of(result: Sequence[Action] | Exception, encoder: Encoder) -> Json:
    """Actions, or the error that was raised, as plain values; long runs of integers abridged."""
    if isinstance(result, TandemError):
        return {"refused": type(result).__name__, "message": result.message}
    if isinstance(result, Exception):
        # The message of a defect may hold anything.
        return {"failed": type(result).__name__}
    return [encoder.plain(action) for action in result]


def head_line(head: RecordingHead) -> bytes:
    """The first line."""
    setup = head.setup
    plain = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "product": head.product,
        "router_id": head.router_id,
        "policy": setup.policy,
        "deadline_bucket_s": setup.deadline_bucket_s,
        "kvc_bucket_blocks": setup.kvc_bucket_blocks,
        "lending": setup.lending,
        "settings": Encoder().plain(setup.settings),
    }
    return _line(plain)


def _replay_with(product: Json) -> str:
    return f"replay it with Tandem {product}" if type(product) is str else "replay it with that one"


def event_line(number: int, now: float, event: Json, outcome: Json) -> bytes:
    """Plain event and outcome as a line."""
    return _line({"n": number, "now": now, "event": event, "outcome": outcome})


def last_line(reason: str) -> bytes:
    """The one that says why nothing follows."""
    return _line({"end": reason})


def read_head(line: bytes) -> RecordingHead:
    """Raises: LineMisfit."""
    try:
        plain = _object(line)
    except LineMisfit:
        plain = {}
    if plain.get("format") != FORMAT:
        raise LineMisfit("this is no recording of a router", ANOTHER_FILE)
    version = plain.get("version")
    if version != FORMAT_VERSION:
        raise LineMisfit(
            f"it has version {version} of the format, this Tandem reads version {FORMAT_VERSION}",
            _replay_with(plain.get("product")),
        )
    setup = CoreSetup(
        policy=_field(plain, "policy", str),
        deadline_bucket_s=float(_field(plain, "deadline_bucket_s", int, float)),
        kvc_bucket_blocks=_field(plain, "kvc_bucket_blocks", int),
        lending=_field(plain, "lending", bool),
        settings=_value(RouterSettings, plain.get("settings")),
    )
    product, router_id = _field(plain, "product", str), _field(plain, "router_id", str)
    return RecordingHead(product, router_id, setup)


def read_line(line: bytes, number: int) -> Handled | LastLine:
    """A line behind the first, where event `number` is due. Raises: LineMisfit."""
    plain = _object(line)
    if "end" in plain:
        return LastLine(_field(plain, "end", str))
    if plain.get("n") != number:
        raise LineMisfit(f"event {number} is due here and {plain.get('n')} stands here")
    now = float(_field(plain, "now", int, float))
    if "outcome" not in plain:
        raise LineMisfit("the outcome is missing")
    return Handled(number, now, _value(Event, plain.get("event")), plain["outcome"])


def is_same(recorded: Json, came: Json) -> bool:
    """Equal to the last bit of every number."""
    return _text(recorded) == _text(came)


def about(event: Event) -> str:
    """A few words: which kind, of whom."""
    if isinstance(event, RequestArrived):
        return f"RequestArrived of {event.spec.request_id}"
    for name in ("worker_id", "request_id", "claim"):
        whose = getattr(event, name, None)
        if whose is not None:
            return f"{type(event).__name__} of {getattr(whose, 'task_id', whose)}"
    hello = getattr(event, "hello", None)
    return type(event).__name__ + ("" if hello is None else f" of {hello.worker_id}")


def _line(plain: Json) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode("ascii") + b"\n"


def _text(plain: Json) -> str:
    return json.dumps(plain, separators=(",", ":"), sort_keys=True)


def _object(line: bytes) -> dict[str, Json]:
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineMisfit("the line is no JSON") from error
    if type(plain) is not dict:
        raise LineMisfit("the line is no JSON object")
    return plain


def _field(plain: dict[str, Json], name: str, *kinds: type) -> Any:
    value = plain.get(name)
    if type(value) not in kinds:
        raise LineMisfit(f"{name} is missing or no {kinds[0].__name__}")
    return value


def _value(kind: Any, plain: Json) -> Any:
    try:
        return event_of(plain, kind)
    except (ValueMisfit, RecursionError) as misfit:
        raise LineMisfit(str(misfit)) from misfit
