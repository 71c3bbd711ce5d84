"""Finds the weight files of a folder and checks their headers, without reading a tensor.

A download that was cut short is the most common damage; it is found here in milliseconds, before
a worker allocates anything.
Source: the safetensors format, https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.json_file import read_json_object
from engine.model_folder_errors import InvalidModelField, InvalidWeightFile, ModelFileMissing

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"

_LENGTH_BYTES = 8
# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000
_BYTES_BY_DTYPE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a header says of one tensor; see engine/weight_check.py."""

    dtype: str
    shape: tuple[int, ...]

    def get_shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.shape

    def get_dtype(self) -> str:
        """As the format spells it."""
        return self.dtype

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class WeightHeader:
    """The header of one file: a source of tensors that tells of them and reads none."""

    def __init__(self, path: Path) -> None:
        """Raises: ModelFileMissing, InvalidWeightFile."""
        self._header_by_name = {
            name: TensorHeader(entry["dtype"], tuple(entry["shape"]))
            for name, entry in _read_header(path).items()
        }

    def keys(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._header_by_name.keys()

    def get_slice(self, name: str) -> TensorHeader:
        """Of this name, which is one of them."""
        return self._header_by_name[name]

    def num_elements_besides(self, dtype: str) -> int:
        """Of all tensors that are of another type, by the name that the format has for it."""
        headers = self._header_by_name.values()
        return sum(header.num_elements for header in headers if header.dtype != dtype)


def checked_weight_files(folder: Path) -> tuple[Path, ...]:
    """Every shard of the model, in the order of their names, each with a sound header.

    Raises: ModelFileMissing, InvalidModelJson, InvalidModelField, InvalidWeightFile.
    """
    single, index = folder / WEIGHTS_FILE, folder / WEIGHTS_INDEX_FILE
    if single.is_file():
        read_tensor_names(single)
        return (single,)
    if not index.is_file():
        hint = "save the weights in the safetensors format into the folder"
        raise ModelFileMissing(single, hint)
    names_by_shard = _names_by_shard(index)
    for shard, names in names_by_shard.items():
        path = folder / shard
        if not path.is_file():
            raise ModelFileMissing(path, f"{WEIGHTS_INDEX_FILE} names it; fetch this shard")
        absent = names - read_tensor_names(path)
        if absent:
            raise InvalidWeightFile(path, f"lacks the tensor {min(absent)} that the index names")
    return tuple(folder / shard for shard in sorted(names_by_shard))


def read_tensor_names(path: Path) -> frozenset[str]:
    """The names of the tensors in one file whose header and length agree.

    Raises: ModelFileMissing, InvalidWeightFile.
    """
    return frozenset(_read_header(path))


def _read_header(path: Path) -> dict[str, Any]:
    """Of every tensor, its entry, checked."""
    text, data_bytes = _header_text(path)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidWeightFile(path, "has a header that is not JSON") from None
    if not isinstance(header, dict):
        raise InvalidWeightFile(path, "has a header that is not a JSON object")
    header.pop("__metadata__", None)
    ends = [_checked_end(path, name, entry) for name, entry in header.items()]
    described_bytes = max(ends, default=0)
    if described_bytes != data_bytes:
        raise InvalidWeightFile(
            path, f"holds {data_bytes} bytes of tensors, its header describes {described_bytes}"
        )
    return header


def _header_text(path: Path) -> tuple[bytes, int]:
    """And how many bytes of tensors follow it."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            data_bytes = file_bytes - _LENGTH_BYTES - header_bytes
            if file_bytes < _LENGTH_BYTES or data_bytes < 0 or header_bytes > _MAX_HEADER_BYTES:
                raise InvalidWeightFile(path, f"is cut off in its header ({file_bytes} bytes)")
            return file.read(header_bytes), data_bytes
    except OSError as error:
        raise ModelFileMissing(path, f"let this user read it ({error.strerror})") from None


def _checked_end(path: Path, name: str, entry: object) -> int:
    """Where the tensor's bytes end, counted from the end of the header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            item_bytes = _BYTES_BY_DTYPE.get(dtype)
            if item_bytes is None:
                raise InvalidWeightFile(path, f"tensor {name} has the unknown dtype {dtype}")
            is_shape = all(isinstance(size, int) and size >= 0 for size in shape)
            if is_shape and begin >= 0 and end - begin == math.prod(shape) * item_bytes:
                return end
    raise InvalidWeightFile(path, f"the header's entry of tensor {name} contradicts itself")


def _names_by_shard(index: Path) -> Mapping[str, set[str]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidModelField(index, "weight_map", "must name the file of each tensor")
    names_by_shard: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # A shard lies in the folder itself: an index may not point at other files of the machine.
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise InvalidModelField(index, f"weight_map.{name}", "must be a plain file name")
        names_by_shard.setdefault(shard, set()).add(name)
    return names_by_shard
