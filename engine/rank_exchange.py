"""Exchange between the ranks of a worker over torch.distributed: gloo on CPUs, NCCL on GPUs.

The ranks of a worker are processes of one machine, so gloo listens on the loopback address only.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engine.runner import RankLost
from engine.tensor_parallel import Reduce, as_bytes, joined_columns, summed

_LOOPBACK = "127.0.0.1"
# Up to so many bytes of parts, one exchange of everything is as fast as two of a share each.
_SMALL_SUM_BYTES = 64 << 10
# The stubs of torch leave out, or name otherwise, most of what is used of it here.
_distributed: Any = dist

_Result = TypeVar("_Result")


class DistributedExchange:
    """One rank's end, an implementation of `RankExchange`. Used from one thread at a time."""

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
        reduce: Reduce = "gather",
    ) -> None:
        """`timeout_s`: how long one exchange may wait for the others."""
        self.rank = rank
        self.size = size
        self.reduce: Reduce = reduce
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        # A process group; None before `join`.
        self._group: Any = None

    def join(self, meeting_place: Path, timeout_s: float) -> None:
        """Meet the other ranks at a file that all of them name and none has written to before.

        `timeout_s`: how long to wait for the last one. Afterwards nobody needs the file.
        Raises: RankLost where they do not come in time, or cannot exchange.
        """
        store = _distributed.FileStore(str(meeting_place), self.size)
        store.set_timeout(self._timeout)
        self._run(lambda: _wait_for_all(store, self.rank, self.size, timeout_s))
        if self._device.type == "cuda":
            self._group = self._run(lambda: _nccl(store, self.rank, self.size, self._timeout))
        else:
            self._group = self._run(lambda: _gloo(store, self.rank, self.size, self._timeout))
        # NCCL connects in the first exchange, through the file; what fails shall fail here.
        ranks = self.all_gather(torch.tensor([[self.rank]], device=self._device))
        found = self._run(lambda: ranks.flatten().tolist())
        if found != list(range(self.size)):
            raise RankLost(f"rank {self.rank} exchanged with ranks {found}; start the worker again")

    def all_gather(self, rows: Tensor) -> Tensor:
        """See `RankExchange`. Raises: RankLost."""
        num_rows, width = rows.shape
        if not rows.numel():
            return rows.new_empty(num_rows, self.size * width)
        return joined_columns(self._of_all(rows))

    def all_sum(self, rows: Tensor) -> Tensor:
        """See `RankExchange`. Raises: RankLost.

        Each rank adds up a share of the numbers and all gather these: as much to move as in a ring.
        Where that is little, or two ranks would move as much either way, each adds up everything.
        """
        if not rows.numel():
            return rows.clone()
        all_bytes = self.size * rows.numel() * rows.element_size()
        if self.size == 2 or all_bytes <= _SMALL_SUM_BYTES or rows.numel() % self.size:
            return summed(self._of_all(rows))
        parts = rows.new_empty(self.size, rows.numel() // self.size)
        group = self._joined
        self._run(lambda: group.alltoall_base(as_bytes(parts), as_bytes(rows), [], []).wait())
        return self._of_all(summed(parts)).view_as(rows)

    def _of_all(self, rows: Tensor) -> Tensor:
        """[size, ...] every rank's, those of rank 0 first."""
        shares = rows.new_empty(self.size, *rows.shape)
        group = self._joined
        self._run(lambda: group._allgather_base(as_bytes(shares), as_bytes(rows)).wait())
        return shares

    def gather(self, rows: Tensor) -> Tensor | None:
        """See `RankExchange`. Raises: RankLost."""
        num_rows, width = rows.shape
        is_first, group = self.rank == 0, self._joined
        if not rows.numel():
            return rows.new_empty(num_rows, self.size * width) if is_first else None
        shares = rows.new_empty(self.size, num_rows, width) if is_first else None
        options = _distributed.GatherOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        parts = [] if shares is None else [[as_bytes(share) for share in shares]]
        self._run(lambda: group.gather(parts, [as_bytes(rows)], options).wait())
        return None if shares is None else joined_columns(shares)

    @property
    def _joined(self) -> Any:
        assert self._group is not None, "join comes first"
        return self._group

    def _run(self, exchange: Callable[[], _Result]) -> _Result:
        try:
            return exchange()
        except RuntimeError as error:
            # The library says where in its source it noticed; the first line says what.
            first_line = (str(error).splitlines() or ["no reason given"])[0]
            raise RankLost(f"rank {self.rank} could not exchange ({first_line})") from error


def _wait_for_all(store: Any, rank: int, size: int, timeout_s: float) -> None:
    store.set(f"rank-{rank}", "here")
    store.wait([f"rank-{other}" for other in range(size)], timedelta(seconds=timeout_s))


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    options = _distributed.ProcessGroupGloo._Options()
    # Without a device of our own it would listen where the name of the host leads to.
    options._devices = [_distributed.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
    options._threads = 1
    options._timeout = timeout
    return _distributed.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    # Builds of torch without CUDA have no such class.
    options = _distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return _distributed.ProcessGroupNCCL(store, rank, size, options)
