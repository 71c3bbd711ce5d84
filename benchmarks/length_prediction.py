"""How well is the length of an answer predicted, and what does the bound cost? On real traces.

Every predictor goes through every trace once: it predicts when a request arrives and learns when
its answer ends, at a fixed time per token, so that it knows no more than a router would. There are
no prompts in traces, only their lengths.

    python -m benchmarks.length_prediction FOLDER

`mae` is the mean absolute error of the mean, in tokens; `cover` the share of answers that the
bound was enough for; `alloc` the tokens of all bounds per token of all answers; `loss` the pinball
loss of the bound at 0.9 as a share of the mean answer: lower is a better trade of the two.
max_tokens is the least power of two that no answer of the trace exceeds; with --own-limits, each
request's is that, a quarter or a sixteenth of it, and answers are cut there.
"""

import argparse
import heapq
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.record import write_results
from scheduling.length_bound import BoundedPredictor, BoundRule, Hoeffding, Padded
from scheduling.length_calibration import Calibration, CalibrationLog
from scheduling.length_oracles import MaxTokens, NoisyOracle, Oracle
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.length_regression import OnlineRegression
from scheduling.prediction import LengthPredictor, RequestFeatures, ResponseLength
from simulator.traces.errors import TraceError, TraceRateMissing
from simulator.traces.reading import read_workload

# Of traces without arrival times: some dozen answers are then under way.
RATE_RPS = 5.0
TIME_PER_TOKEN_S = 0.03
LIMIT_DIVISORS = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request of a trace, and what came of it."""

    features: RequestFeatures
    arrival_at_s: float
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """One predictor on one trace."""

    trace: str
    predictor: str
    calibration: Calibration
    # Pinball loss per token of the mean answer.
    relative_loss: float
    microseconds: float


def predictors(seed: int) -> dict[str, Callable[[], LengthPredictor]]:
    """All that are compared, by the name in the table."""
    found: dict[str, Callable[[], LengthPredictor]] = {"max-tokens": MaxTokens}
    for share in (0.8, 0.9, 0.95):
        found[f"quantiles {share}"] = partial(OnlineQuantiles, share)
        found[f"regression {share}"] = partial(OnlineRegression, share)
    for padding in (0.5, 1.0, 1.5):
        found[f"quantiles padded {padding}"] = partial(_ruled, Padded(padding))
    found["quantiles hoeffding"] = partial(_ruled, Hoeffding())
    found["oracle off by 0.3"] = partial(NoisyOracle, 0.3, seed)
    found["oracle"] = Oracle
    return found


def _ruled(rule: BoundRule) -> LengthPredictor:
    return BoundedPredictor(OnlineQuantiles(), rule)


def main() -> None:
    args = _arguments()
    results: list[Result] = []
    for path in sorted(args.traces.glob("*.gz")):
        try:
            answers = answers_of(path, args)
        except TraceError as error:
            print(f"\nleft out: {error}")
            continue
        name = path.name.partition(".")[0]
        _print_head(name, answers)
        for label, make in predictors(args.seed).items():
            results.append(replay(name, label, make(), answers))
            _print_line(label, [results[-1]])
    print("\nall traces alike (geometric mean of alloc, plain mean of the rest)")
    for label in predictors(args.seed):
        _print_line(label, [one for one in results if one.predictor == label])
    if args.json:
        print(json.dumps([asdict(one) for one in results], indent=1))
    if args.out:
        write_results(args.out, {"results": [asdict(one) for one in results]}, (), False)


def replay(trace: str, label: str, predictor: LengthPredictor, answers: Sequence[Answer]) -> Result:
    """Predict at arrival, observe at the end, in the order of time."""
    log = CalibrationLog(0.9, window=len(answers))
    # (end, number, what was predicted)
    running: list[tuple[float, int, ResponseLength]] = []

    def end_until(now: float) -> None:
        while running and running[0][0] <= now:
            _, number, predicted = heapq.heappop(running)
            ended = answers[number]
            log.add(ended.features, predicted, ended.num_output_tokens)
            predictor.observe(ended.features, ended.num_output_tokens)

    started = time.perf_counter()
    for number, answer in enumerate(answers):
        end_until(answer.arrival_at_s)
        predicted = predictor.predict(answer.features)
        ends_at_s = answer.arrival_at_s + TIME_PER_TOKEN_S * answer.num_output_tokens
        heapq.heappush(running, (ends_at_s, number, predicted))
    end_until(math.inf)
    spent_s = time.perf_counter() - started
    mean = statistics.fmean(answer.num_output_tokens for answer in answers)
    report = log.report()
    return Result(trace, label, report, report.pinball_loss / mean, 1e6 * spent_s / len(answers))


def answers_of(path: Path, args: argparse.Namespace) -> list[Answer]:
    """The requests of a trace in order of arrival. Raises: TraceError."""
    try:
        workload = read_workload(path, max_requests=args.requests, seed=args.seed)
    except TraceRateMissing:
        workload = read_workload(
            path, rate_rps=RATE_RPS, max_requests=args.requests, seed=args.seed
        )
    longest = max(request.num_output_tokens for request in workload.requests)
    limit = 1 << (longest - 1).bit_length()
    rng = random.Random(args.seed)
    answers = []
    for request in workload.requests:
        divisor = rng.choice(LIMIT_DIVISORS) if args.own_limits else 1
        max_tokens = max(1, limit // divisor)
        length = min(request.num_output_tokens, max_tokens)
        features = RequestFeatures(
            request.tenant,
            "standard",
            request.num_prompt_tokens,
            max_tokens,
            arrival_at_s=request.arrival_s,
            known_output_tokens=length,
        )
        answers.append(Answer(features, request.arrival_s, length))
    return answers


def _print_head(name: str, answers: Sequence[Answer]) -> None:
    num_cut = sum(one.num_output_tokens >= one.features.max_tokens for one in answers)
    mean = statistics.fmean(one.num_output_tokens for one in answers)
    limit = max(one.features.max_tokens for one in answers)
    print(f"\n{name}: {len(answers)} answers, mean {mean:.0f}, max_tokens {limit}, {num_cut} cut")
    heads = ("predictor", "mae", "rel", "cover", "alloc", "loss", "us")
    print("{:<24} {:>7} {:>6} {:>6} {:>7} {:>6} {:>5}".format(*heads))


def _print_line(label: str, results: Sequence[Result]) -> None:
    each = [one.calibration for one in results]
    mean = statistics.fmean
    print(
        f"{label:<24} {mean(one.mean_absolute_error for one in each):>7.0f} "
        f"{mean(one.mean_relative_error for one in each):>6.2f} "
        f"{mean(one.covered_share for one in each):>6.3f} "
        f"{statistics.geometric_mean(one.allocation_factor for one in each):>7.2f} "
        f"{mean(one.relative_loss for one in results):>6.3f} "
        f"{mean(one.microseconds for one in results):>5.0f}",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.length_prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", type=Path, help="folder of traces (csv.gz, jsonl.gz)")
    parser.add_argument("--own-limits", action="store_true", help="limits that cut answers")
    parser.add_argument("--requests", type=int, default=20_000, help="of each trace, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON as well")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
