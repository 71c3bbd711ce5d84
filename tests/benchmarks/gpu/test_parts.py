"""The parts of the GPU benchmark, on the CPU: they run, and what they write can be read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.decode import Grid, grid_for, measure_decode
from benchmarks.gpu.engine_setup import EngineSetup, Options, config_of
from benchmarks.gpu.journal import Journal, read_journal
from benchmarks.gpu.layout import APART, TOGETHER, measure_layout
from benchmarks.gpu.prefill import measure_prefill
from benchmarks.gpu.profile import OWN, PUBLISHED, SOURCE, measure_profile
from benchmarks.gpu.shared_prefix import measure_shared_prefix
from benchmarks.gpu.through_loop import ORDERINGS
from benchmarks.record import Target
from engine.models.capture_testing import FakeCapture
from engine.models.tensor_layout import expected_shapes
from engine.native.library import find_compiler
from runtime.clock import ManualClock
from scheduling.batch_time_fit import fit_error
from simulator.hardware.alternatives import fit_chosen
from simulator.hardware.fit import balanced
from simulator.hardware.profiles import measured_iterations, measurements

TINY = Options(shape="2m", device="cpu", attention="torch", is_quick=True)


@pytest.fixture(scope="module")
def setup() -> EngineSetup:
    torch.set_num_threads(1)
    return EngineSetup(TINY, FakeCapture())


def test_decode_is_measured_with_recorded_layers_and_without(
    setup: EngineSetup, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "decode.json", 100.0)
    measure_decode(setup, journal)
    rows = read_journal(journal.path)["rows"]
    cells = {(row["batch"], row["context"], row["ordering"]) for row in rows}
    grid = grid_for(is_quick=True)
    through_loop = (f"engine loop, {name}" for name in ORDERINGS)
    orderings = ("recorded", "single kernels", *through_loop)
    assert cells == {(*cell, ordering) for cell in grid.cells() for ordering in orderings}
    assert all(row["step_ms"] > 0 for row in rows)
    bare = [row for row in rows if row["ordering"] in ("recorded", "single kernels")]
    assert all(row["memory_floor_ms"] > 0 for row in bare)


def test_the_whole_grid_holds_what_the_limit_is_asked_of() -> None:
    grid: Grid = grid_for(is_quick=False)
    assert set(grid.batches) == {1 << i for i in range(9)}
    assert (min(grid.contexts), max(grid.contexts)) == (1024, 16_384)


def test_prefill_counts_layers_attention_and_one_row_of_logits(
    setup: EngineSetup, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "prefill.json", 100.0)
    measure_prefill(setup, journal)
    first = read_journal(journal.path)["rows"][0]
    config = setup.model.config
    shapes = expected_shapes(config)
    layers = sum(
        shape[0] * shape[1] for name, shape in shapes.items() if "layers" in name and len(shape) > 1
    )
    attention = 4 * (64 * 64 // 2) * config.num_heads * config.head_dim * config.num_layers
    head = config.vocab_size * config.hidden_size
    assert first["flops"] == 2 * (64 * layers + head) + attention


def test_layouts_hold_the_same_tokens_in_more_or_fewer_pieces(
    setup: EngineSetup, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "layout.json", 100.0)
    measure_layout(setup, journal)
    rows = read_journal(journal.path)["rows"]
    pieces = {(row["order"], row["page_size"]): row["pieces"] for row in rows}
    num_layers, num_tokens = setup.model.config.num_layers, 2 * 64
    assert pieces == {
        (order, size): num_tokens // size * (num_layers if order == APART else 1)
        for order in (TOGETHER, APART)
        for size in (1, 16, 32, 64)
    }
    assert all(row["attention_ms"] > 0 and row["gather_ms"] > 0 for row in rows)


def test_a_beginning_that_answers_share_is_read_once_and_each_time_in_turns(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    setup = EngineSetup(replace(TINY, attention="auto"))
    journal = Journal(tmp_path / "prefix.json", 100.0)
    measure_shared_prefix(setup, journal)
    found = read_journal(journal.path)
    if find_compiler() is None:
        assert "--shared-prefix-attention auto" in found["skipped"][0]["why"]
        return
    (row,) = found["rows"]
    assert (row["batch"], row["shared_tokens"]) == (4, 512)
    assert row["together_ms"] > 0
    assert row["apart_ms"] > 0


def test_what_cannot_share_is_skipped(setup: EngineSetup, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "prefix.json", 100.0)
    measure_shared_prefix(setup, journal)
    (skipped,) = read_journal(journal.path)["skipped"]
    assert "--shared-prefix-attention auto" in skipped["why"]


def test_the_simulator_reads_both_tables_of_passes(setup: EngineSetup, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "profile.json", 100.0)
    measure_profile(setup, journal)
    own = measurements(tmp_path / OWN)
    assert {kind: len(rows) for kind, rows in own.items()} == {
        "prefill": 2,
        "decode": 2,
        "mixed": 2,
    }
    model = fit_chosen(balanced(own))
    assert fit_error(model, own["decode"]).num_rows == 2
    published = measured_iterations(
        (tmp_path / PUBLISHED).parent, max_prompt_tokens=8192, source=SOURCE, hardware="cpu"
    )
    # The chunk that begins later has no place there, and mixed passes are not read from it.
    assert {kind: len(rows) for kind, rows in published.items()} == {"prefill": 1, "decode": 2}
    assert published["decode"][0].shape in [row.shape for row in own["decode"]]


def test_the_large_shape_is_that_of_eight_billion_parameters() -> None:
    num_parameters = 0
    for shape in expected_shapes(config_of("8b")).values():
        num_parameters += int(torch.Size(shape).numel())
    assert num_parameters == 8_030_261_248


def test_a_journal_keeps_what_was_found_and_skips_what_there_is_no_time_for(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path / "part.json", 10.0, clock)
    journal.row({"step": 1}, Target("a", (1.0,), 2.0, is_limit=True))
    clock.advance(9.0)
    assert not journal.has_time("the rest")
    found: dict[str, Any] = read_journal(journal.path)
    assert found["rows"] == [{"step": 1}]
    assert found["targets"][0]["is_met"]
    assert [one["what"] for one in found["skipped"]] == ["the rest"]
    assert not found["is_complete"]
    assert read_journal(tmp_path / "none.json") == {}
