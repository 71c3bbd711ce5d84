"""The receiver's side of NIXL: senders ask over a connection and write to memory themselves.

Each sender writes through an agent of its own. When its connection ends in the middle of a batch,
that agent is closed before the claim on the blocks is dropped: its memory is deregistered, and
what UCX emulates over TCP or shared memory moves only while the agent is called. So the end of
quarantine is exact, as it is for the other transports.
"""

from typing import Final

import numpy as np

from kvtransfer.batches import TaggedBlocks, plain_copy
from kvtransfer.doors import ServedPool
from kvtransfer.nixl_agent import NixlAgent
from kvtransfer.plan import merge_runs
from kvtransfer.protocol import CopyBytes
from kvtransfer.tcp_door import DoorKind
from kvtransfer.tcp_frames import (
    ANSWER_BYTES,
    Answer,
    BatchHead,
    FrameError,
    Verdict,
    pack_answer,
    pack_memory,
    read_answer,
)
from kvtransfer.tcp_link import Arrivals
from kvtransfer.tcp_stream import Patience, Stream

NAME: Final = "nixl"
# Calls of progress without a pause, then the pause between two of them.
_NUM_EAGER_LOOKS: Final = 2000
_PAUSE_S: Final = 0.001


def nixl_door(copy_bytes: CopyBytes) -> DoorKind:
    """Bytes come through an agent of each sender's own."""

    def make(stream: Stream, pool: ServedPool) -> Arrivals:
        return NixlArrivals(stream, pool, copy_bytes)

    return DoorKind(NAME, make)


class NixlArrivals:
    """See `Arrivals`. A sender that stands still keeps its claim for as long as it lives."""

    def __init__(self, stream: Stream, pool: ServedPool, copy_bytes: CopyBytes) -> None:
        self._stream = stream
        self._data = pool.views.data
        self._block_bytes = pool.layout.block_bytes
        self._copy_bytes = copy_bytes
        self._agent = NixlAgent(pool.owner.worker_id)
        self._agent.register(self._data.ctypes.data, len(self._data))

    def greeting(self) -> bytes:
        return pack_memory(self._data.ctypes.data, self._agent.metadata())

    def take(self, head: BatchHead, blocks: TaggedBlocks, patience: Patience) -> None:
        try:
            granted = Answer(head.sequence_number, Verdict.GRANTED)
            self._stream.send([memoryview(pack_answer(granted))], patience)
            num_looks = 0
            while not self._stream.has_news(0.0 if num_looks < _NUM_EAGER_LOOKS else _PAUSE_S):
                # No limit: where the sender's kernel copies (CMA), closing the agent would not keep
                # one that was stopped from writing when it goes on.
                self._agent.progress()
                num_looks += 1
            written = read_answer(self._stream.receive(ANSWER_BYTES, patience))
            if written != Answer(head.sequence_number, Verdict.WRITTEN):
                raise FrameError("a sender does not say that its batch is written")
        except BaseException:
            # Before the claim is dropped: from here on nobody writes through this agent.
            self.close()
            raise
        if self._copy_bytes is not plain_copy:
            self._inject_fault(blocks)

    def refuse(self, head: BatchHead, patience: Patience) -> None:
        """No bytes were sent."""

    def is_still(self) -> bool:
        return True

    def close(self) -> None:
        self._agent.close()

    def _inject_fault(self, blocks: TaggedBlocks) -> None:
        ids, size = blocks.dst.tolist(), self._block_bytes
        for _, dst, num_blocks in merge_runs(range(len(ids)), ids):
            span = self._data[dst * size : (dst + num_blocks) * size]
            self._copy_bytes(span, np.array(span))
