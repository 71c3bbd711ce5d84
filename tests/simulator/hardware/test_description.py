"""Descriptions of hardware: the shipped ones are sound, wrong ones are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from scheduling.batch_time import BatchShape
from scheduling.batch_time_limits import target_forward_size
from scheduling.batch_time_recovery import crossover_tokens
from simulator.hardware.description import (
    ALIASES,
    FOLDER,
    HardwareUnreadable,
    known_names,
    load_hardware,
    read_hardware,
)

SHIPPED = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_description_is_named_like_its_file_and_says_where_it_is_from(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.name == name
    assert hardware.source
    assert all(error.median_relative_error < 0.15 for error in hardware.errors), hardware.errors


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_machine_behaves_like_one(name: str) -> None:
    hardware = load_hardware(name)
    model = hardware.batch_time_model()
    decode = BatchShape(16, 16 * 500)
    prompt = BatchShape().with_chunk(0, 256)
    both = decode.with_chunk(0, 256)
    assert 0 < model.seconds(decode) < model.seconds(both)
    assert model.seconds(both) < model.seconds(decode) + model.seconds(prompt)
    assert 64 <= target_forward_size(model) <= 8192
    swap = hardware.swap_model()
    assert crossover_tokens(model, swap, hardware.kv.bytes_per_token, 2048, 100_000) is not None


@pytest.mark.parametrize("alias", ["a100", "h100", "h200", "cpu"])
def test_the_short_names_are_known(alias: str) -> None:
    assert load_hardware(alias).name == ALIASES.get(alias, alias)
    assert alias in known_names()


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(shipped() | {"name": "mine"}))
    assert load_hardware(str(path)).name == "mine"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(HardwareUnreadable, match=r"tpu: no such name.*h100_llama70b_tp4"):
        load_hardware("tpu")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HardwareUnreadable, match=r"gone\.json: cannot be read"):
        load_hardware(str(tmp_path / "gone.json"))


def test_text_that_is_not_json_is_told_with_its_line() -> None:
    with pytest.raises(HardwareUnreadable, match=r"my\.json: .*line 2"):
        read_hardware('{"name": "x",\n oops}', "my.json")


def shipped() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "a100_opt13b.json").read_text())
    return content


@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        ("kv", "block_size", 0, "kv.block_size"),
        ("kv", "capacity_tokens", 3, "kv.capacity_tokens"),
        ("swap", "gb_per_s", -1.0, "swap.gb_per_s"),
        ("batch_time", "fixed_s", "fast", "batch_time.fixed_s"),
        ("batch_time", "per_sequence_s", -1e-6, "batch_time.per_sequence_s"),
        ("limits", "max_sequences", 7, "limits.max_sequences"),
    ],
)
def test_a_wrong_field_is_told_by_its_place(
    part: str, field: str, value: object, told: str
) -> None:
    content = shipped()
    content[part][field] = value
    with pytest.raises(HardwareUnreadable, match=told):
        read_hardware(json.dumps(content), "my.json")


def test_a_missing_part_is_told() -> None:
    content = shipped()
    del content["transfer"]
    with pytest.raises(HardwareUnreadable, match="transfer"):
        read_hardware(json.dumps(content), "my.json")


def test_bends_out_of_order_are_told() -> None:
    content = shipped()
    content["batch_time"]["bends"] = [
        {"tokens": 64, "s_per_token": 1e-6},
        {"tokens": 0, "s_per_token": 1e-6},
    ]
    with pytest.raises(HardwareUnreadable, match="batch_time: bends must ascend"):
        read_hardware(json.dumps(content), "my.json")
