"""The tables of a comparison, and what becomes of its targets."""

from benchmarks.end_to_end.measure import Figures
from benchmarks.end_to_end.report import PAIR_RIGHT, SINGLE, as_markdown, ratios, targets

OURS = "tandem"


def figures(server: str, tokens_per_s: float, ttft_p99: float) -> Figures:
    return Figures(
        server=server,
        num_clients=8,
        num_requests=16,
        tokens_per_s=tokens_per_s,
        ttft_p50=1.0,
        ttft_p99=ttft_p99,
        itl_p50=20.0,
        itl_p99=30.0,
        tokens_per_message=2.0,
        seconds=1.0,
        client_cpu_s=0.1,
    )


PEERS = [figures(SINGLE, 200.0, 90.0), figures(PAIR_RIGHT, 100.0, 200)]
ROUND = [figures(OURS, 160.0, 100.0), *PEERS]


def test_each_target_is_judged_beside_the_peer_that_it_names() -> None:
    found = {target.what: target.is_met for target in targets([ROUND], OURS)}
    assert found == {
        "tandem, 8 clients, beside vllm, tokens/s >= 1": False,
        "tandem, 8 clients, beside vllm-pd-threads-right, tokens/s >= 1.5": True,
        "tandem, 8 clients, beside vllm-pd-threads-right, TTFT p99 <= 0.5": True,
    }
    assert "tokens/s >= 1 MISSED" in ratios([ROUND], OURS)


def test_a_file_of_results_becomes_markdown_with_the_floor_of_a_step_beside_its_gaps() -> None:
    content = {
        "command": "python -m benchmarks.end_to_end",
        "date": "2026-11-21",
        "machine": "a processor, 2 cores",
        "model": "0.1b",
        "decode_floor_ms": 5.0,
        "rounds": [[one.as_json() for one in ROUND]],
    }
    text = as_markdown(content)
    assert "a processor, 2 cores" in text
    # 20 ms between messages of two tokens each.
    assert "| tandem | 8 | 160.0 | 1.0 | 100.0 | 20.0 | 30.0 | 2.00 | 2.00 |" in text


def test_each_of_ours_gets_a_table_of_ratios_and_is_no_peer_of_the_other() -> None:
    both = [*ROUND, figures("tandem-mixed", 240.0, 100.0)]
    assert "tandem-mixed" not in ratios([both], OURS)
    content = {
        "command": "python -m benchmarks.end_to_end",
        "date": "2026-11-21",
        "machine": "a processor, 2 cores",
        "model": "0.1b",
        "decode_floor_ms": 5.0,
        "rounds": [[one.as_json() for one in both]],
    }
    text = as_markdown(content)
    assert "| tandem beside |" in text
    assert "| tandem-mixed beside |" in text
    assert "| vllm | 8 | 1.20 | 1.11 | tokens/s >= 1 met |" in text
