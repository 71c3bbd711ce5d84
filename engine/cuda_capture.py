"""CUDA graphs as `Capture`. Written for a GPU; nothing of it was run where none was at hand."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from engine.models.captured_layers import Replay

# torch has no types for streams and graphs.
_cuda: Any = torch.cuda
# Runs before recording: libraries set themselves up at the first, which a graph cannot hold.
_WARM_UPS = 2


class CudaCapture:
    """Records on a stream of its own; all graphs share one pool of memory.

    That is safe because they are replayed one after the other on one stream, and because whoever
    records keeps the tensors that must outlive a graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = _cuda.graph_pool_handle()
        self._stream = _cuda.Stream(device)
        # What is being recorded, and the end of the graph that is open; None while nothing is.
        self._pieces: list[Replay] | None = None
        self._open = ExitStack()

    @property
    def is_recording(self) -> bool:
        """See `Recorder`; not while libraries set themselves up."""
        return self._pieces is not None

    def record(self, work: Callable[[], None]) -> Replay:
        """See `Capture.record`."""
        self._stream.wait_stream(_cuda.current_stream(self._device))
        with _cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        _cuda.current_stream(self._device).wait_stream(self._stream)
        pieces: list[Replay] = []
        self._pieces = pieces
        try:
            self._begin_graph()
            with self._open:
                work()
        finally:
            self._pieces = None
        return pieces[0] if len(pieces) == 1 else lambda: _replay_all(pieces)

    def leave_out(self, call: Callable[[], object]) -> None:
        """See `Recorder.leave_out`."""
        assert self._pieces is not None, "nothing is recorded"
        self._open.close()
        self._pieces.append(lambda: _make(call))
        self._begin_graph()

    def _begin_graph(self) -> None:
        assert self._pieces is not None, "nothing is recorded"
        graph = _cuda.CUDAGraph()
        # Other threads, such as the one by which NCCL watches its work, may ask the driver things.
        mode = "thread_local"
        recording = _cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode=mode
        )
        self._open.enter_context(recording)
        self._pieces.append(graph.replay)


def _replay_all(pieces: list[Replay]) -> None:
    for piece in pieces:
        piece()


def _make(call: Callable[[], object]) -> None:
    call()
