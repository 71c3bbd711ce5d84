"""The demo from its first line to its last, on real processes."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.questions import demo_questions
from deploy.local.testing import LauncherProcess

Launch = Callable[..., LauncherProcess]

pytestmark = pytest.mark.slow


def test_the_demo_answers_moves_kv_blocks_and_gets_them_all_back(
    launch: Launch, model_folder: Path
) -> None:
    code, out, err = launch("demo", "--model", str(model_folder), "--json").end()
    assert code == 0, err
    assert "demo passed in" in err.splitlines()[-1]
    result = json.loads(out)
    assert result["every_block_came_back"] is True
    assert {worker["worker_id"] for worker in result["workers"]} == {
        *("prefill-0", "decode-0", "decode-1")
    }
    *answers, left = result["requests"]
    assert len(answers) == len(demo_questions()) - 1
    assert left["finished"] is None
    assert left["failure"] is None
    assert 0 < left["num_output_tokens"] < 200
    for answer in answers:
        timings = answer["finished"]["timings"]
        assert answer["text"].strip()
        assert answer["num_output_tokens"] == answer["finished"]["usage"]["num_output_tokens"]
        assert 0 < timings["prefill_ms"] < timings["total_ms"]
        assert 0 < timings["ttft_ms"] < timings["total_ms"]
        # Prompts are shorter than one pool, so every block of theirs moved exactly once.
        num_prompt_tokens = answer["finished"]["usage"]["num_prompt_tokens"]
        assert timings["num_blocks_moved"] == -(-num_prompt_tokens // 16)
        assert timings["num_bytes_moved"] > 0
        assert timings["transport"] == "shared_memory"
        assert timings["prefill_worker"] == "prefill-0"
        assert timings["decode_worker"] in ("decode-0", "decode-1")


def test_without_json_there_are_answers_a_table_and_the_result_of_the_check(
    launch: Launch, model_folder: Path
) -> None:
    code, out, err = launch("demo", "--model", str(model_folder), "--decode", "1").end()
    assert code == 0, err
    assert "[1] > " in out
    assert "(cancelled after " in out
    table = [line.split() for line in out.splitlines() if "shared_memory" in line]
    assert [row[0] for row in table] == [str(n) for n in range(1, len(demo_questions()))]
    assert "GT queue" in out
    assert out.splitlines()[-1].startswith("every KV block came back: ")


def test_ctrl_c_ends_the_demo_without_a_traceback(launch: Launch, model_folder: Path) -> None:
    demo = launch("demo", "--model", str(model_folder))
    demo.wait_said("loading model")
    demo.note_children()
    demo.send_signal(signal.SIGINT)
    code, _, err = demo.end()
    assert code == 130
    assert "Traceback" not in err
    assert demo.survivors() == []
