"""From tables to descriptions: reading, composing, and the error of what is shipped."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_fit import MeasuredBatch
from simulator.hardware import composed, profiles
from simulator.hardware.alternatives import FITS
from simulator.hardware.description import FOLDER, load_hardware
from simulator.hardware.fit import balanced, compare, main, whole_passes
from simulator.hardware.profiles import ProfileMissing
from simulator.hardware.recipes import RECIPES, cpu

PROFILES = Path(
    os.environ.get("TANDEM_PROFILES", Path(__file__).resolve().parents[4] / "shared" / "profiles")
)
needs_profiles = pytest.mark.skipif(
    not PROFILES.is_dir(), reason="the timing tables are not here; set TANDEM_PROFILES"
)


def write_table(path: Path, header: str, *lines: str) -> None:
    path.write_text("\n".join([header, *lines]) + "\n")


def test_a_table_is_read_packed_or_not(tmp_path: Path) -> None:
    write_table(tmp_path / "one.csv", "a,b", "1,2")
    with gzip.open(tmp_path / "two.csv.gz", "wt") as packed:
        packed.write("a,b\n3,4\n")
    assert list(profiles.read_table(tmp_path, "one")) == [{"a": "1", "b": "2"}]
    assert list(profiles.read_table(tmp_path, "two")) == [{"a": "3", "b": "4"}]


def test_a_missing_table_is_an_error_with_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path), "--only", "h200_llama8b_fp8", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "no such table" in capsys.readouterr().err


def test_rows_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    write_table(tmp_path / "one.csv", "a,b", "1,2")
    with pytest.raises(ProfileMissing, match="no row"):
        profiles.select(tmp_path, "one", a="7")


def test_measured_iterations_lose_what_the_client_added(tmp_path: Path) -> None:
    write_table(
        tmp_path / "iteration_times_measured.csv",
        "source,phase,batch,tokens,context,ms",
        "x,prefill,2,1024,512,40.0",
        "x,prefill,64,32768,512,900.0",
        "x,decode,8,8,300,20.0",
    )
    phases = profiles.measured_iterations(
        tmp_path, max_prompt_tokens=4096, request_overhead_ms=15.0, source="x"
    )
    prompt = BatchShape().with_chunk(0, 512).with_chunk(0, 512)
    assert phases["prefill"] == [MeasuredBatch(prompt, 0.025)]
    assert phases["decode"] == [MeasuredBatch(BatchShape(8, 2400), 0.020)]


def test_operators_are_put_together_layer_by_layer(tmp_path: Path) -> None:
    header = "hardware,model,tensor_parallel,layer,tokens_or_sequences,ms"
    layers = ["layernorm", "qkv_proj", "lm_head", "embedding"]
    lines = [f"g,m,1,{layer},{size},{size / 100}" for layer in layers for size in (10, 20)]
    write_table(tmp_path / "operator_rtx_dense.csv", header, *lines)
    write_table(
        tmp_path / "operator_rtx_mixed_attention.csv",
        "hardware,model,tensor_parallel,prefill_chunk,prefill_context,decode_batch,decode_context,ms",
        "g,m,1,0,0,10,100,0.5",
        "g,m,1,10,50,5,100,0.7",
        "g,m,1,19,0,5,100,0.7",
    )
    wanted = {"hardware": "g", "model": "m", "tensor_parallel": "1"}
    phases = composed.composed_iterations(tmp_path, 4, 1000, **wanted)
    # Two norms and a product a layer, four layers; embedding and head once.
    assert phases["decode"][0].seconds == pytest.approx((4 * (0.3 + 0.5) + 0.1 + 0.1) / 1e3)
    mixed = phases["mixed"][0]
    assert mixed.shape == BatchShape(5, 500).with_chunk(50, 10)
    assert mixed.seconds == pytest.approx((4 * (0.45 + 0.7) + 0.15 + 0.1) / 1e3)
    assert len(phases["mixed"]) == 1, "24 tokens lie beyond the table"


TIMELINE = "run,t_s,prompt_tokens_per_s,output_tokens_per_s,running,waiting,kv_cache_pct"


def write_run(folder: Path, *seconds: str) -> None:
    """Four requests of 100 tokens that decode from 0 to 10 s, and the timeline."""
    write_table(
        folder / "engine_replays.csv",
        "run,request,prompt_tokens,output_tokens,first_token_s,last_token_s",
        *(f"r,{i},100,200,0.0,10.0" for i in range(4)),
    )
    write_table(folder / "engine_replay_timeline.csv", TIMELINE, *seconds)


def test_quiet_seconds_of_a_run_become_passes(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "r,1.0,300,70.0,4,0,0.0",
        "r,2.0,0.0,80.0,4,0,0.0",
        "r,3.0,50.0,60.0,4,0,0.0",
        "r,4.0,0.0,60.0,1,0,0.0",
    )
    rows = composed.replay(tmp_path, "r", 2048, 256).passes()
    assert [row.seconds for row in rows] == [pytest.approx(4 / 80)]
    # At 1.5 s each has 100 prompt tokens and 30 of its answer.
    assert rows[0].shape == BatchShape(4, 4 * 130)


def test_context_comes_from_the_cache_where_the_run_tells_it(tmp_path: Path) -> None:
    write_run(tmp_path, "r,1.0,300,70.0,4,0,40.0", "r,2.0,0.0,80.0,4,0,60.0")
    (row,) = composed.replay(tmp_path, "r", 2048, 256, kv_capacity_tokens=1000).passes()
    assert row.shape.decode_context == 500


def test_full_seconds_of_a_run_become_one_pass(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "r,1.0,8000,40.0,4,9,0.0",
        "r,2.0,4000,20.0,4,9,0.0",
        "r,3.0,6000,20.0,4,9,0.0",
        # Nobody waited at its end.
        "r,4.0,6000,20.0,4,0,0.0",
    )
    (row,) = composed.replay(tmp_path, "r", 1000, 256, reused_share=0.1).passes()
    # 9,000 computed prompt tokens and 40 others in two seconds, 1,000 a pass.
    assert row.seconds == pytest.approx(2 * 1000 / 9040)
    assert row.weight == 2
    assert (row.shape.num_decode, row.shape.num_prompt_tokens) == (4, 996)
    assert row.shape.prompt_attention == 996 * 50


def test_what_a_run_takes_beyond_its_operators_is_found() -> None:
    operators = BatchTime(fixed_s=0.01, bends=((0, 1e-5),))
    shapes = [BatchShape(n, 500 * n) for n in (1, 8, 64, 128)]
    shapes.append(BatchShape(28, 28_000).with_chunk(0, 2000))
    beyond = composed.Overhead(2e-3, per_token_s=3e-6, per_further_token_s=1e-6)
    rows = [MeasuredBatch(s, operators.seconds(s) + beyond.seconds(s.num_tokens)) for s in shapes]
    assert beyond.seconds(2028) == pytest.approx(2e-3 + 128 * 3e-6 + 1900 * 1e-6)
    found = composed.find_overhead(operators, rows, has_communication=True)
    assert found.per_pass_s == pytest.approx(2e-3)
    assert found.per_token_s == pytest.approx(3e-6)
    assert found.per_further_token_s == pytest.approx(1e-6)
    alone = composed.find_overhead(operators, rows, has_communication=False)
    assert alone.per_token_s == 0


def test_seconds_that_hide_work_do_not_count() -> None:
    operators = BatchTime(fixed_s=0.01, bends=((0, 1e-5),))
    shapes = [BatchShape(n, 500 * n) for n in range(1, 20)]
    rows = [MeasuredBatch(s, operators.seconds(s) + 2e-3) for s in shapes]
    hidden = [MeasuredBatch(s, 2 * operators.seconds(s)) for s in shapes[::3]]
    found = composed.find_overhead(operators, rows + hidden, has_communication=False)
    assert found.per_pass_s == pytest.approx(2e-3, rel=0.05)


def test_each_phase_weighs_the_same() -> None:
    one, many = MeasuredBatch(BatchShape(1, 10), 1.0), MeasuredBatch(BatchShape(2, 10), 1.0)
    rows = balanced({"decode": [one], "prefill": [many] * 4})
    assert [row.weight for row in rows] == [1.0, 0.25, 0.25, 0.25, 0.25]


def test_our_own_measurements_need_no_tables(tmp_path: Path) -> None:
    phases = cpu(tmp_path).phases
    with (FOLDER / "cpu_measurements.csv").open() as lines:
        assert sum(map(len, phases.values())) == len(list(csv.DictReader(lines)))
    assert main([str(tmp_path), "--only", "cpu", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "cpu.json").read_text() == (FOLDER / "cpu.json").read_text()


def test_every_description_has_a_recipe() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(RECIPES)


@needs_profiles
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_file_is_what_the_tables_give(name: str, tmp_path: Path) -> None:
    assert main([str(PROFILES), "--only", name, "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / f"{name}.json").read_text())
    assert again == json.loads((FOLDER / f"{name}.json").read_text())


@needs_profiles
@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtx4090_llama8b", "h100_llama70b_tp4", "h200_llama8b_fp8"])
def test_no_other_form_is_much_better_on_rows_it_has_not_seen(name: str) -> None:
    found = compare(whole_passes(RECIPES[name](PROFILES)))
    assert found.keys() == FITS.keys()
    chosen = found["bends and interaction (chosen)"]
    for form, error_by_kind in found.items():
        for kind, error in error_by_kind.items():
            assert chosen[kind].median <= error.median + 0.03, (form, kind)


def test_the_errors_in_a_file_are_those_of_its_tables() -> None:
    tables = {error.table for error in load_hardware("rtxpro6000_qwen32b_tp2").errors}
    assert tables == {"prefill", "decode", "mixed", "seconds of a recorded run"}
