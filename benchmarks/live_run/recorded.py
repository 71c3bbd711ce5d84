"""What a recording tells of its run: requests as the router saw them, times of messages."""

import json
import re
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from router.events import (
    Claim,
    ReportsArrived,
    RequestArrived,
    ReservationAnswered,
)
from router.recording.entries import Handled
from router.recording.file import Recording
from scheduling.batch_time import BatchShape
from scheduling.batch_time_fit import MeasuredBatch
from scheduling.messages import KvPushed
from simulator.traces.workload import TraceRequest, Workload

# What takes longer is on the way to or from something else.
_MAX_WAY_S = 0.05
_OVERTAKEN_S = 0.0003


_REQUEST_ID = re.compile(r"(?P<load>[^.]+)\.(?P<piece>\d+)-\d+")
# Begin and end, seconds of the router's clock.
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Answered:
    """One request by the clock of the router, seconds."""

    load: str
    piece: int
    arrived_at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    ttft_s: float
    # None below two tokens.
    tpot_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class LoggedPass:
    """A line of a worker's log; instants of the machine's monotonic clock, as the router's."""

    began_at_s: float
    ended_at_s: float
    # The engine waited for nothing since the pass before.
    follows_at_once: bool
    shape: BatchShape


@dataclass(slots=True)
class RecordedRun:
    """All of a recording that is compared or fitted."""

    # Request id -> arrival and prompt; and once it has ended, the answer.
    answered: dict[str, Answered] = field(default_factory=dict)
    # When the ledger answered, and how long after the question.
    ledger_s: list[tuple[float, float]] = field(default_factory=list)
    # When a prefill worker told that the KV of a prompt had been sent, and for how long it sent.
    push_s: list[tuple[float, float]] = field(default_factory=list)
    # By worker: when it was sent a prompt, and when frames with reports came from it.
    prompts_sent_at_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    reports_at_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _arrived: dict[str, tuple[float, int]] = field(default_factory=dict)
    _asked_at_s: dict[Claim, float] = field(default_factory=dict)

    @classmethod
    def of(cls, recording: Recording) -> "RecordedRun":
        """Raises: RecordingUnreadable."""
        run = cls()
        for handled in recording.events():
            run._note(handled)
        return run

    def requests(self, load: str) -> list[Answered]:
        """Of all pieces of that load, in the order in which they arrived."""
        found = (one for one in self.answered.values() if one.load == load)
        return sorted(found, key=lambda one: one.arrived_at_s)

    def spans(self, load: str) -> list[Span]:
        """Of each piece, from the first arrival to the last end."""
        pieces: dict[int, Span] = {}
        for one in self.requests(load):
            begin_s, end_s = pieces.get(one.piece, (one.arrived_at_s, one.arrived_at_s))
            pieces[one.piece] = begin_s, max(end_s, one.arrived_at_s + one.total_s)
        return list(pieces.values())

    def within(self, spans: Sequence[Span]) -> "RecordedRun":
        """How long messages took in that time; without requests."""
        return RecordedRun(
            ledger_s=[(at_s, took) for at_s, took in self.ledger_s if is_in(at_s, spans)],
            push_s=[(at_s, took) for at_s, took in self.push_s if is_in(at_s, spans)],
            prompts_sent_at_s=_within(self.prompts_sent_at_s, spans),
            reports_at_s=_within(self.reports_at_s, spans),
        )

    def workload(self, load: str) -> Workload:
        """The same requests, for the simulator; between two pieces nothing happens."""
        requests = self.requests(load)
        first_s = requests[0].arrived_at_s
        return Workload(
            load,
            tuple(
                TraceRequest(
                    one.arrived_at_s - first_s, one.num_prompt_tokens, one.num_output_tokens
                )
                for one in requests
            ),
        )

    def _note(self, handled: Handled) -> None:
        now, event = handled.now, handled.event
        match event:
            case RequestArrived(spec):
                self._arrived[spec.request_id] = now, len(spec.prompt_token_ids)
            case ReservationAnswered(claim):
                self.ledger_s.append((now, now - self._asked_at_s.pop(claim)))
            case ReportsArrived(worker_id, reports) if reports:
                self.reports_at_s[worker_id].append(now)
                pushed = (report for report in reports if isinstance(report, KvPushed))
                self.push_s += [(now, report.copy_s) for report in pushed]
            case _:
                pass
        if type(handled.outcome) is list:
            for action in handled.outcome:
                self._perform(action, now)

    def _perform(self, action: dict[str, Any], now: float) -> None:
        match action["is"]:
            case "Reserve":
                claim = action["claim"]
                key = Claim(claim["task_id"], claim["role"], claim["number"])
                self._asked_at_s[key] = now
            case "SendCommand" if action["command"]["is"] in ("StartPrefill", "AdmitPrompt"):
                self.prompts_sent_at_s[action["worker_id"]].append(now)
            case "EmitFinished":
                arrived_at_s, num_prompt = self._arrived.pop(action["request_id"])
                timings = action["timings"]
                place = _REQUEST_ID.fullmatch(action["request_id"])
                self.answered[action["request_id"]] = Answered(
                    place["load"] if place else "",
                    int(place["piece"]) if place else 0,
                    arrived_at_s,
                    num_prompt,
                    action["num_output_tokens"],
                    timings["ttft_s"],
                    timings["tpot_s"],
                    timings["total_s"],
                )


def is_in(at_s: float, spans: Sequence[Span]) -> bool:
    """Within one of them."""
    return any(begin_s <= at_s <= end_s for begin_s, end_s in spans)


def _within(
    instants: Mapping[str, Sequence[float]], spans: Sequence[Span]
) -> dict[str, list[float]]:
    return {key: [at_s for at_s in found if is_in(at_s, spans)] for key, found in instants.items()}


def passes_of(log: Path) -> list[LoggedPass]:
    """Every pass that a worker has computed; it writes JSON lines at level debug."""
    found = []
    for line in log.read_text("utf-8").splitlines():
        if '"pass_computed"' in line:
            told = json.loads(line)
            shape = BatchShape(
                told["num_decode"],
                told["decode_context"],
                told["num_prompt_tokens"],
                told["prompt_attention"],
            )
            found.append(
                LoggedPass(told["began_at_s"], told["ended_at_s"], told["follows_at_once"], shape)
            )
    return found


def measured(passes: Sequence[LoggedPass], spans: Sequence[Span]) -> list[MeasuredBatch]:
    """Passes of that time, each until the next could begin: what an engine does between two of
    them is part of how fast it is."""
    pauses = [
        after.began_at_s - one.ended_at_s if after.follows_at_once else None
        for one, after in pairwise(passes)
    ]
    known = [pause for pause in pauses if pause is not None]
    usual_s = statistics.fmean(known) if known else 0.0
    return [
        MeasuredBatch(one.shape, one.ended_at_s - one.began_at_s + (usual_s if p is None else p))
        for one, p in zip(passes, [*pauses, None], strict=False)
        if is_in(one.began_at_s, spans)
    ]


def link_s(run: RecordedRun, passes: Mapping[str, Sequence[LoggedPass]]) -> float:
    """One way between router and worker, the mean of both."""
    ways = (list(_to_workers(run, passes)), list(_from_workers(run, passes)))
    return statistics.fmean(statistics.fmean(way) for way in ways if way)


def _to_workers(run: RecordedRun, passes: Mapping[str, Sequence[LoggedPass]]) -> Iterator[float]:
    """Until a pass begins, where the worker had nothing else to do."""
    for worker_id, sent in run.prompts_sent_at_s.items():
        begins = [one.began_at_s for one in passes[worker_id]]
        for at_s in sent:
            index = bisect_right(begins, at_s)
            is_idle = index == 0 or passes[worker_id][index - 1].ended_at_s < at_s
            if is_idle and index < len(begins) and begins[index] - at_s < _MAX_WAY_S:
                yield begins[index] - at_s


def _from_workers(run: RecordedRun, passes: Mapping[str, Sequence[LoggedPass]]) -> Iterator[float]:
    """From the end of a pass to the frame that tells of it."""
    for worker_id, frames in run.reports_at_s.items():
        # The frame may overtake the worker's look at the clock.
        ends = [one.ended_at_s - _OVERTAKEN_S for one in passes[worker_id]]
        for at_s in frames:
            index = bisect_right(ends, at_s)
            if index and at_s - ends[index - 1] < _MAX_WAY_S:
                yield max(0.0, at_s - ends[index - 1] - _OVERTAKEN_S)
