"""For tests and for looking at reports: runs that nobody simulated, with every kind of event."""

import random
from dataclasses import dataclass

from scheduling.lifecycle import Phase
from simulator.metrics.live_request import LiveRequest
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import Status
from simulator.metrics.role_tally import Iteration, WorkerSample
from simulator.metrics.summary import RunFacts, RunResult
from simulator.metrics.trace_log import TraceLog
from simulator.slo import NO_SLO, GapRule, RequestSlo

TTFT_GOAL_S, TPOT_GOAL_S = 1.0, 0.05
GOALS = RequestSlo("default", ttft_s=TTFT_GOAL_S, gaps=((GapRule.MEAN, TPOT_GOAL_S),))


@dataclass(frozen=True, slots=True)
class InventedRun:
    """Two workers, a queue, and requests that take longer the more of them there are."""

    policy: str = "default"
    num_requests: int = 200
    rate_scale: float = 1.0
    # Seconds of a decode iteration with one sequence.
    token_s: float = 0.02
    seed: int = 1
    warmup_s: float = 0.0
    trace_log: TraceLog | None = None
    trace: str = "invented"
    cluster: str = "prefill:1,decode:1"

    def result(self) -> RunResult:
        """The whole run, told to a recorder in order."""
        recorder = RunRecorder(warmup_s=self.warmup_s, trace=self.trace_log)
        recorder.worker_added("prefill-0", "prefill", 1000)
        recorder.worker_added("decode-0", "decode", 4000)
        rng = random.Random(self.seed)
        arrivals: list[tuple[float, int, int]] = []
        arrival_s = 0.0
        for number in range(self.num_requests):
            arrival_s += rng.expovariate(4.0 * self.rate_scale)
            arrivals.append((arrival_s, number, rng.randint(1, 60)))
        end_s = _Playing(self, recorder, rng).play(arrivals)
        facts = RunFacts(
            policy=self.policy,
            trace=self.trace,
            cluster=self.cluster,
            hardware="imagined",
            seed=self.seed,
            slo="ttft=1s,tpot=50ms",
            ttft_goal_s=TTFT_GOAL_S,
            token_goal_s=TPOT_GOAL_S,
            model="none-1B",
            rate_scale=self.rate_scale,
            settings={"max_tokens": 64},
        )
        return RunResult(facts, recorder.finish(end_s))


@dataclass(slots=True)
class _Answer:
    live: LiveRequest
    num_left: int


class _Playing:
    """One sequence is prefilled at a time, all others decode together."""

    def __init__(self, run: InventedRun, recorder: RunRecorder, rng: random.Random) -> None:
        self._run, self._recorder, self._rng = run, recorder, rng
        self._waiting: list[_Answer] = []
        self._running: list[_Answer] = []

    def play(self, arrivals: list[tuple[float, int, int]]) -> float:
        """(instant, number, tokens) of each request, in order; returns when the last one ends."""
        recorder, waiting, running = self._recorder, self._waiting, self._running
        now, coming = 0.0, arrivals[::-1]
        while coming or waiting or running:
            if not waiting and not running:
                now = max(now, coming[-1][0])
            while coming and coming[-1][0] <= now:
                at_s, number, num_tokens = coming.pop()
                live = recorder.arrived(number, at_s, 50 + number % 400, GOALS)
                live.enter(Phase.PROMPT_QUEUED, at_s)
                waiting.append(_Answer(live, num_tokens))
            recorder.queued(now, len(waiting), len(running) // 4)
            begin_s = now
            if waiting and len(running) < 40:
                now = self._prefill(waiting.pop(0), now)
            now = max(now, begin_s + self._run.token_s * (1 + 0.03 * len(running)))
            recorder.iterated("decode-0", Iteration(begin_s, now, len(running), 0))
            self._decode(now)
            held = 60 * len(running)
            recorder.sampled("decode-0", now, WorkerSample(held, 0.6 * held, len(running), 0))
        return now

    def _prefill(self, answer: _Answer, begin_s: float) -> float:
        live = answer.live
        live.enter(Phase.PREFILLING, begin_s, "prefill-0")
        end_s = begin_s + 0.04 + 2e-4 * live.num_prompt_tokens
        iteration = Iteration(begin_s, end_s, 0, live.num_prompt_tokens)
        self._recorder.iterated("prefill-0", iteration)
        live.emit(end_s)
        live.enter(Phase.DECODING, end_s, "decode-0")
        answer.num_left -= 1
        self._running.append(answer)
        return end_s

    def _decode(self, now: float) -> None:
        for answer in list(self._running):
            if answer.num_left <= 0:
                self._running.remove(answer)
                is_lost = self._rng.random() < 0.01
                status = Status.FAILED if is_lost else Status.FINISHED
                self._recorder.ended(answer.live, now, status)
            elif answer.live.first_token_at_s == now:
                continue  # it was prefilled in this very iteration
            elif self._rng.random() < 0.002:
                answer.live.num_preemptions += 1
            else:
                answer.num_left -= 1
                answer.live.emit(now)


def one_request(
    recorder: RunRecorder,
    number: int,
    token_times_s: tuple[float, ...],
    *,
    at_s: float = 0.0,
    slo: RequestSlo = NO_SLO,
    status: Status = Status.FINISHED,
) -> None:
    """A request of ten prompt tokens that arrives and ends at its last token, at once."""
    live = recorder.arrived(number, at_s, 10, slo)
    for token_at_s in token_times_s:
        live.emit(token_at_s)
    recorder.ended(live, token_times_s[-1] if token_times_s else at_s, status)
