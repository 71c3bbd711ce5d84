"""A fake of CUDA graphs on any device: operations are noted, and done again without Python."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models.captured_layers import Replay


class FakeCapture:
    """Replays the very operations, on the very tensors, that one run of the work needed."""

    def __init__(self) -> None:
        self.num_recorded = self.num_left_out = 0
        self._notes: _Notes | None = None

    @property
    def is_recording(self) -> bool:
        """See `Recorder`."""
        return self._notes is not None

    def record(self, work: Callable[[], None]) -> Replay:
        work()
        with _Notes() as self._notes:
            notes = self._notes
            work()
        self._notes = None
        self.num_recorded += 1
        replay: Replay = notes.replay
        return replay

    def leave_out(self, call: Callable[[], object]) -> None:
        """See `Recorder.leave_out`."""
        assert self._notes is not None, "nothing is recorded"
        self._notes.leave_out(call)
        self.num_left_out += 1


# torch has no types for it.
_Mode: Any = TorchDispatchMode


class _Notes(_Mode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def leave_out(self, call: Callable[[], object]) -> None:
        # What it gives is in tensors that are noted already.
        self._done.append((lambda: (call(), None)[1], (), {}, []))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._done.append((func, args, kwargs, _tensors(result)))
        return result

    def replay(self) -> None:
        for func, args, kwargs, results in self._done:
            for noted, found in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                # Views and operations in place have written there already.
                if noted.data_ptr() != found.data_ptr():
                    noted.copy_(found)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
