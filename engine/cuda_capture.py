"""CUDA graphs as `Capture`. Written for a GPU; nothing of it was run where none was at hand."""

from collections.abc import Callable
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

    def record(self, work: Callable[[], None]) -> Replay:
        """See `Capture.record`."""
        self._stream.wait_stream(_cuda.current_stream(self._device))
        with _cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        _cuda.current_stream(self._device).wait_stream(self._stream)
        graph = _cuda.CUDAGraph()
        with _cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        replay: Replay = graph.replay
        return replay
