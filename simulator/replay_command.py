"""`tandem replay`: does this version decide what a recorded router decided?"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from router.recording.entries import ENDED, FULL, TOO_SLOW, Handled
from router.recording.file import Recording, RecordingUnreadable
from router.recording.values import Encoder, Json
from simulator.replaying import Difference, Replayed, replay
from simulator.usage import DONE, FAILED, Parser, count, guarded

_EXAMPLES = """\
examples:
  tandem up --router.record_dir recordings
  tandem replay recordings/router-0-1795304202327826.jsonl.gz
  tandem replay recordings/router-0-1795304202327826.jsonl.gz --show 812

The router writes a recording where its setting record_dir names a folder. docs/simulator.md says
what is in it: prompts and answers as token ids, but no text.

Exit codes: 0 every action is the same, 1 one differs, nothing was recorded or the file cannot be
read, 2 wrong usage, 130 interrupted.
"""
_WHY = {
    ENDED: "",
    FULL: "the recording ends here: it had reached its size (record_max_mib)",
    TOO_SLOW: "the recording ends here: more happened than could be written",
}
_CUT = "the recording breaks off here: its router was killed, or the file is not whole"
# Of an action, on one line.
_MAX_CHARS = 2000


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code."""
    found: list[bool] = []
    code = guarded(lambda argv: found.append(_replay(argv)), argv)
    return code if code != DONE or found[0] else FAILED


def _parser() -> Parser:
    parser = Parser(
        "tandem replay",
        "Tell a fresh router core what a recorded one was told, and compare what both decide.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("recording", type=Path, metavar="FILE", help="what a router wrote, *.jsonl.gz")
    about = "print this event, and what came of it then and now"
    add("--show", type=count, metavar="N", help=about)
    about = "look after every event whether what the core knows fits together; slow"
    add("--check", action="store_true", help=about)
    add("--json", action="store_true", help="tell the outcome as JSON")
    return parser


def _replay(argv: Sequence[str]) -> bool:
    options = _parser().parse_args(argv)

    shown: list[Json] = []

    def watch(handled: Handled, came: Json) -> None:
        if handled.number == options.show:
            shown.append(_shown(handled, came))

    with options.recording.open("rb", buffering=0) as file:
        recording = Recording(options.recording, file)
        replayed = replay(recording, watch, is_checking=options.check)
    if not replayed.num_events:
        problem = f"nothing was recorded: {_why_nothing(recording)}"
        raise RecordingUnreadable(options.recording, 0, problem, "record a router that serves")
    if options.show is not None and not shown:
        print(f"note: {_why_not_shown(options.show, replayed)}", file=sys.stderr)
    if options.json:
        told = _as_json(recording, replayed) | {"shown": shown[0] if shown else None}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        sys.stdout.writelines(json.dumps(one, indent=1) + "\n" for one in shown)
        sys.stdout.write(_report(recording, replayed))
    return replayed.difference is None


def _why_nothing(recording: Recording) -> str:
    reason = recording.end_reason
    if reason == ENDED:
        return f"{recording.head.router_id} ended before it was told anything"
    return _CUT if reason is None else _WHY.get(reason, reason)


def _why_not_shown(number: int, replayed: Replayed) -> str:
    if replayed.difference is not None:
        at = replayed.difference.handled.number
        return f"event {number} was not reached: the replay ends at event {at}, which differs"
    last = replayed.num_events
    return f"there is no event {number}; give --show a number from 1 to {last}"


def _report(recording: Recording, replayed: Replayed) -> str:
    head = recording.head
    lines = [
        f"{head.router_id} of Tandem {head.product}, policy {head.setup.policy}: "
        f"{replayed.num_events} events in {replayed.span_s:.3f} s, "
        f"{replayed.num_requests} requests"
    ]
    if replayed.difference is not None:
        lines += _told(replayed.difference)
    else:
        lines.append("the same actions for every event")
        reason = recording.end_reason
        lines.append(_CUT if reason is None else _WHY.get(reason, ""))
    return "\n".join(filter(None, lines)) + "\n"


def _as_json(recording: Recording, replayed: Replayed) -> dict[str, Json]:
    head, difference = recording.head, replayed.difference
    told: dict[str, Json] = {
        "is_same": difference is None,
        "router_id": head.router_id,
        "product": head.product,
        "policy": head.setup.policy,
        "num_events": replayed.num_events,
        "num_requests": replayed.num_requests,
        "span_s": replayed.span_s,
        "end": (recording.end_reason or "cut off") if difference is None else "not reached",
        "difference": None,
    }
    if difference is not None:
        recorded, came = difference.pair
        told["difference"] = {
            "event": difference.handled.number,
            "line": difference.line(),
            "recorded": recorded,
            "came": came,
        }
    return told


def _told(difference: Difference) -> list[str]:
    recorded, came = map(_line, difference.pair)
    return [difference.line(), f"recorded: {recorded}", f"now:      {came}"]


def _line(plain: Json) -> str:
    text = json.dumps(plain)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}... (--show prints all of it)"


def _shown(handled: Handled, came: Json) -> dict[str, Json]:
    return {
        "event": handled.number,
        "now": handled.now,
        "told": Encoder().plain(handled.event),
        "recorded": handled.outcome,
        "came": came,
    }
