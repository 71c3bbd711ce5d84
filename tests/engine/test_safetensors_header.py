"""Damaged weight files are named from their headers, before a tensor is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.model_folder_errors import InvalidModelField, InvalidWeightFile, ModelFileMissing
from engine.safetensors_header import checked_weight_files


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(4, 3, dtype=torch.bfloat16) for name in names}


def write_shards(folder: Path) -> Path:
    weight_map = {}
    for number, name in enumerate(("embed", "head"), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file(tensors(name), folder / shard)
        weight_map[name] = shard
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [path.name for path in checked_weight_files(write_shards(tmp_path))]
    assert names == [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write_shards(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileMissing, match=r"00002-of-00002.*index"):
        checked_weight_files(tmp_path)


def test_a_shard_without_a_tensor_of_the_index_is_named(tmp_path: Path) -> None:
    save_file(tensors("other"), write_shards(tmp_path) / "model-00002-of-00002.safetensors")
    with pytest.raises(InvalidWeightFile, match="head"):
        checked_weight_files(tmp_path)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "", 7])
def test_an_index_cannot_point_outside_the_folder(tmp_path: Path, shard: object) -> None:
    index = write_shards(tmp_path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embed": shard}}))
    with pytest.raises(InvalidModelField, match="plain file name"):
        checked_weight_files(tmp_path)


def test_an_index_without_tensors_is_named(tmp_path: Path) -> None:
    (write_shards(tmp_path) / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InvalidModelField, match="weight_map"):
        checked_weight_files(tmp_path)


def test_a_weight_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors("embed", "head"), path)
    content = path.read_bytes()
    for num_bytes in range(len(content)):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(InvalidWeightFile, match="fetch it again"):
            checked_weight_files(tmp_path)
    path.write_bytes(content)
    assert checked_weight_files(tmp_path) == (path,)


def with_header(header: object, num_data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_data_bytes)


def entry(dtype: str, shape: list[object], begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little"),
        with_header(b"{]"),
        with_header(b"\xff"),
        with_header([1]),
        with_header({"a": 1}),
        with_header({"a": entry("F32", [2], 0, 8)}, 9),
        with_header({"a": entry("F32", [2], 0, 4)}, 4),
        with_header({"a": entry("F32", [-2], 0, -8)}),
        with_header({"a": entry("F32", ["2"], 0, 8)}, 8),
        with_header({"a": entry("F32", [2], "0", 8)}, 8),
        with_header({"a": entry("F7", [2], 0, 8)}, 8),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidWeightFile):
        checked_weight_files(tmp_path)
