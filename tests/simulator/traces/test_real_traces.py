"""The development traces, where they are: counts and percentiles as their README has them.

They lie in the folder of TANDEM_TRACES, or in shared/traces beside the checkout.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from statistics import mean, quantiles

import pytest

from simulator.published_slo_rows import PUBLISHED_SLOS
from simulator.traces.errors import TraceNotAWorkload
from simulator.traces.published_slos import read_slos
from simulator.traces.reading import read_workload
from simulator.traces.workload import TraceRequest

_BESIDE = Path(__file__).resolve().parents[4] / "shared" / "traces"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the traces are."""
    path = Path(os.environ.get("TANDEM_TRACES", _BESIDE))
    if not path.is_dir():
        pytest.skip(f"no traces in {path}; name their folder in TANDEM_TRACES")
    return path


# file, requests, span s, mean rps; then mean, p50, p90, p99, max of prompts and of answers.
TABLE = """
azure_2023_conv.csv.gz 19366 3502 5.53  1155 1020 2734 4142 14050  211 129 424 601 1000
mooncake_conversation_first_half.jsonl.gz 5719 1797 3.18 \
    12870 7640 28638 91207 123192  346 356 608 1105 2000
rag_campus_days1_5.jsonl.gz 5167 431998 0.012  2937 3142 3925 5263 7712  277 226 555 906 2183
servegen_large_draw.csv.gz 22916 3599 6.37  771 566 1939 3845 26605  209 80 483 813 4064
servegen_reasoning_draw.csv.gz 12819 3599 3.56 \
    1005 114 1232 20387 39697  3100 2166 7048 15054 30076
"""
# file, requests; then as above.
LENGTHS = """
lengths_sharegpt.csv.gz 20000  2332 1717 5680 7431 8141  439 416 832 997 1024
lengths_arxiv_summarization.csv.gz 20000  2591 2728 3705 3932 4046  287 167 371 3211 4056
lengths_chat_lmsys.csv.gz 1024  62 17 177 586 1037  162 117 389 533 761
lengths_story_writing.csv.gz 512  308 309 400 566 1232  1144 1106 1708 2341 3501
"""


@pytest.mark.parametrize("row", TABLE.strip().splitlines(), ids=lambda row: row.split()[0])
def test_a_trace_has_the_figures_of_its_table(folder: Path, row: str) -> None:
    name, *numbers = row.split()
    num_requests, span_s, rps, *figures = map(float, numbers)

    workload = read_workload(folder / name)

    assert len(workload.requests) == num_requests
    assert workload.span_s == pytest.approx(span_s, abs=4)
    assert workload.mean_rps == pytest.approx(rps, abs=0.01)
    assert _figures(workload.requests) == pytest.approx(figures, abs=0.51)


@pytest.mark.parametrize("row", LENGTHS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_lengths_have_the_figures_of_their_table(folder: Path, row: str) -> None:
    name, *numbers = row.split()
    num_requests, *figures = map(float, numbers)

    workload = read_workload(folder / name, rate_rps=3.0)

    assert len(workload.requests) == num_requests
    assert workload.mean_rps == pytest.approx(3, rel=0.15)
    assert _figures(workload.requests) == pytest.approx(figures, abs=0.51)


def _figures(requests: tuple[TraceRequest, ...]) -> list[float]:
    figures: list[float] = []
    for lengths in (
        [request.num_prompt_tokens for request in requests],
        [request.num_output_tokens for request in requests],
    ):
        cuts = quantiles(lengths, n=100, method="inclusive")
        figures += [mean(lengths), cuts[49], cuts[89], cuts[98], max(lengths)]
    return figures


def test_mooncakes_clock_is_no_burst_any_more(folder: Path) -> None:
    workload = read_workload(folder / "mooncake_conversation_first_half.jsonl.gz")

    counts = [0] * (int(workload.span_s) + 1)
    for request in workload.requests:
        counts[int(request.arrival_s)] += 1
    average = mean(counts)
    dispersion = mean((count - average) ** 2 for count in counts) / average
    # 7.4 with the stamps as they are; a Poisson process has 1.
    assert dispersion < 1.6


@pytest.mark.parametrize(
    ("name", "share", "tolerance"),
    [
        ("mooncake_conversation_first_half.jsonl.gz", 0.347, 0.002),
        ("coding_assistant.jsonl.gz", 0.964, 0.002),
        # The README has 32.9 %; following each chain of blocks through the file by hand gives this.
        ("rag_campus_days1_5.jsonl.gz", 0.315, 0.002),
    ],
)
def test_prefixes_are_shared_as_much_as_the_readme_says(
    folder: Path, name: str, share: float, tolerance: float
) -> None:
    requests = read_workload(folder / name).requests

    reused = sum(_tokens_seen_before(requests))

    total = sum(request.num_prompt_tokens for request in requests)
    assert reused / total == pytest.approx(share, abs=tolerance)


def _tokens_seen_before(requests: tuple[TraceRequest, ...]) -> Iterator[int]:
    seen: set[int] = set()
    for request in requests:
        num_known = sum(1 for _ in takewhile(seen.__contains__, request.prefix_ids))
        yield min(num_known * request.prefix_block_tokens, request.num_prompt_tokens)
        seen.update(request.prefix_ids[num_known:])


def test_the_coding_assistant_is_a_closed_workload(folder: Path) -> None:
    workload = read_workload(folder / "coding_assistant.jsonl.gz")

    assert len(workload.requests) == 9777
    starts = [request for request in workload.requests if request.after_previous_s is None]
    assert len(starts) == len({request.session for request in workload.requests}) == 150
    assert mean(r.num_prompt_tokens for r in workload.requests) == pytest.approx(92_691, abs=0.5)
    assert mean(r.num_output_tokens for r in workload.requests) == pytest.approx(407, abs=0.5)
    assert sum(len(request.prefix_ids) for request in workload.requests) == 14_155_221
    names = set[int]().union(*(request.prefix_ids for request in workload.requests))
    assert len(names) == 502_187
    assert any(note.startswith("4 requests with 0 output tokens") for note in workload.notes)


@pytest.mark.parametrize(
    ("clients", "draw"),
    [
        ("servegen_large_clients_week1.csv.gz", "servegen_large_draw.csv.gz"),
        ("servegen_reasoning_clients_first12h.csv.gz", "servegen_reasoning_draw.csv.gz"),
    ],
)
def test_requests_can_be_drawn_from_clients(folder: Path, clients: str, draw: str) -> None:
    workload = read_workload(folder / clients, rate_rps=5.0, max_requests=20_000, seed=7)

    assert len(workload.requests) == 20_000
    # Of the same statistics, at another hour: alike, not equal.
    recorded = read_workload(folder / draw)
    for field in ("num_prompt_tokens", "num_output_tokens"):
        drawn_mean = mean(getattr(request, field) for request in workload.requests)
        assert 0.4 < drawn_mean / mean(getattr(r, field) for r in recorded.requests) < 2.5


def test_tables_that_are_no_workloads_are_refused(folder: Path) -> None:
    for name in (
        "published_slos.csv",
        "servegen_large_rates_week1.csv.gz",
        "servegen_reasoning_rates_first12h.csv.gz",
    ):
        with pytest.raises(TraceNotAWorkload):
            read_workload(folder / name)


def test_our_own_table_of_published_goals_is_that_of_the_file(folder: Path) -> None:
    slos = read_slos(folder / "published_slos.csv")

    assert len(slos) == 22
    # Where in a source it stands is told in other words.
    assert [replace(slo, where="") for slo in PUBLISHED_SLOS] == [
        replace(slo, where="") for slo in slos
    ]
