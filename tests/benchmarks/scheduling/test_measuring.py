import gzip
import random
from pathlib import Path

import pytest

from benchmarks.scheduling.cells import TRACES, Pair
from benchmarks.scheduling.measuring import CellSettings, Measuring, Subject, scaled
from scheduling.policies import POLICIES
from simulator.hardware.description import load_hardware
from simulator.slo_text import SloTextInvalid

PAIR = Pair(TRACES[0], "a100_opt13b")
FCFS = Subject("fcfs", POLICIES["fcfs"])


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    rng = random.Random(3)
    rows = [f"{number * 0.5},{rng.randint(50, 900)},{rng.randint(2, 20)}" for number in range(90)]
    text = "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n"
    with gzip.open(tmp_path / PAIR.trace.name, "wt", encoding="utf-8") as file:
        file.write(text)
    return tmp_path


def test_a_share_of_the_memory_is_whole_blocks_and_all_else_is_as_it_was() -> None:
    hardware = load_hardware("a100")
    quarter = scaled(hardware, 0.25)
    size = hardware.kv.block_size
    assert quarter.num_kv_blocks == hardware.kv.capacity_tokens // 4 // size
    assert quarter.kv.capacity_tokens % size == 0
    assert quarter.batch_time == hardware.batch_time
    assert scaled(hardware, 1.0) is hardware
    assert scaled(hardware, 1e-9).num_kv_blocks == 1


def test_files_that_were_begun_without_these_options_go_on() -> None:
    assert CellSettings(seed=2).as_json() == {"seed": 2, "quick": False}
    assert CellSettings(kv_share=0.5, slo="ttft=9x", swap_gib=60.0).as_json() == {
        "seed": 0,
        "quick": False,
        "kv_share": 0.5,
        "slo": "ttft=9x",
        "swap_gib": 60.0,
    }


def test_with_less_memory_more_of_it_is_written(traces: Path) -> None:
    written = []
    for share in (1.0, 0.05):
        settings = CellSettings(is_quick=True, kv_share=share, slo="ttft=50x,tpot=20x")
        cell = Measuring(traces, settings).cell(PAIR, FCFS, None)
        assert cell["slo"] == "ttft=50x,tpot=20x"
        written.append(cell["common"]["kvc_written_share"])
    assert written[1] > 2 * written[0]


def test_goals_that_nobody_can_read_are_refused(traces: Path) -> None:
    measuring = Measuring(traces, CellSettings(is_quick=True, slo="soon"))
    with pytest.raises(SloTextInvalid):
        measuring.cell(PAIR, FCFS, None)


def test_others_are_measured_at_the_rate_of_the_reference(traces: Path) -> None:
    measuring = Measuring(traces, CellSettings(is_quick=True))
    reference = measuring.cell(PAIR, FCFS, None)
    other = measuring.cell(PAIR, Subject("default", POLICIES["default"]), reference)
    assert other["common_scale"] == reference["common_scale"]
    assert other["common"]["offered_rps"] == reference["common"]["offered_rps"]
    assert reference["common_scale"] == pytest.approx(1.1 * reference["goodput"]["rate_scale"])


def test_what_an_ablation_looks_at_is_there(traces: Path) -> None:
    settings = CellSettings(is_quick=True)
    common = Measuring(traces, settings).cell(PAIR, FCFS, None)["common"]
    (role,) = common["roles"].values()
    assert role["mean_running"] > 0
    assert role["iteration_tokens"] > 1
    assert common["cpu_us_per_request"] > 0
    assert common["phases_s"]["decoding"] > 0
