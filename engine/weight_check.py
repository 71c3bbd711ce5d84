"""Whether the files of a folder hold what config.json asks for: every tensor, name and shape.

Asked before any is read, and by a launcher before it starts anything: hence without torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from engine.model_config import ModelConfig
from engine.model_folder_errors import ModelFolderError, UnsupportedModelOption
from engine.models.tensor_layout import canonical_name, expected_shapes

# As safetensors spells them; numbers of any other type are a quantised model's.
_PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
_UNQUANTISED_HINT = "use the unquantised weights of the model"


class TensorMissing(ModelFolderError):
    """No weight file of the folder holds a tensor that the configuration asks for."""

    code = "model_tensor_missing"

    def __init__(self, folder: Path, tensor: str) -> None:
        super().__init__(
            folder, f"no weight file holds {tensor}; fetch all shards, or correct config.json"
        )
        self.tensor = tensor


class TensorShapeMismatch(ModelFolderError):
    """A tensor has not the shape that config.json implies."""

    code = "model_tensor_shape"

    def __init__(
        self, path: Path, tensor: str, expected: tuple[int, ...], actual: tuple[int, ...]
    ) -> None:
        super().__init__(
            path,
            f"{tensor} has shape {list(actual)}, config.json implies {list(expected)}; "
            "config.json and the weights are from different models",
        )
        self.tensor, self.expected, self.actual = tensor, expected, actual


class TensorEntry(Protocol):
    """What a file says of one tensor."""

    def get_shape(self) -> Sequence[int]: ...

    def get_dtype(self) -> str:
        """As safetensors spells it."""
        ...


class TensorEntries(Protocol):
    """A file that tells of its tensors by name."""

    def keys(self) -> Iterable[str]: ...

    def get_slice(self, name: str) -> TensorEntry: ...


Source = TypeVar("Source", bound=TensorEntries)


@dataclass(frozen=True, slots=True)
class Located(Generic[Source]):
    """A weight file that holds a tensor."""

    path: Path
    handle: Source
    # The tensor's name in this file.
    name: str


def located_tensors(
    config: ModelConfig, sources: Mapping[Path, Source]
) -> dict[str, Located[Source]]:
    """Where each tensor lies, by the name that the model has for it.

    Raises: TensorMissing, TensorShapeMismatch, UnsupportedModelOption.
    """
    located = {
        canonical_name(name): Located(path, source, name)
        for path, source in sources.items()
        for name in source.keys()  # noqa: SIM118 -- not a mapping
    }
    folder = next(iter(sources)).parent
    for name, shape in expected_shapes(config).items():
        _check(name, shape, located, folder)
    return located


def _check(
    name: str, shape: tuple[int, ...], located: Mapping[str, Located[Source]], folder: Path
) -> None:
    found = located.get(name)
    if found is None:
        stem = name.removesuffix("weight")
        packed = next((n for n in located if stem and n != name and n.startswith(stem)), None)
        if packed and packed != stem + "bias":
            raise UnsupportedModelOption(
                folder, f"the quantised tensor {packed}", _UNQUANTISED_HINT
            )
        raise TensorMissing(folder, name)
    entry = found.handle.get_slice(found.name)
    actual = tuple(entry.get_shape())
    if actual != shape:
        raise TensorShapeMismatch(found.path, name, shape, actual)
    if entry.get_dtype() not in _PLAIN_DTYPES:
        option = f"the type {entry.get_dtype()} of the tensor {name}"
        raise UnsupportedModelOption(found.path, option, _UNQUANTISED_HINT)
