"""Which cached block goes first when room is needed."""

from collections import OrderedDict
from typing import Protocol

from scheduling.ids import BlockId


class EvictionOrder(Protocol):
    """The cached blocks that nobody holds. It decides what is lost, never what is right."""

    def add(self, block_id: BlockId) -> None:
        """The last holder let go of it. Of one holder's blocks, the later ones come first."""
        ...

    def touch(self, block_id: BlockId) -> None:
        """A request found its content, whether somebody holds it or not."""
        ...

    def discard(self, block_id: BlockId) -> None:
        """Somebody holds it again, or its content is worth nothing; one that is not in is fine."""
        ...

    def pick(self) -> BlockId:
        """Take out the one to lose. There is one."""
        ...

    def __len__(self) -> int: ...


class LeastRecentlyUsed:
    """The one that was let go of longest ago; of one chain, the end before its beginning."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[BlockId, None] = OrderedDict()

    def add(self, block_id: BlockId) -> None:
        """See `EvictionOrder.add`."""
        self._blocks[block_id] = None
        self._blocks.move_to_end(block_id)

    def touch(self, block_id: BlockId) -> None:
        """See `EvictionOrder.touch`."""
        if block_id in self._blocks:
            self._blocks.move_to_end(block_id)

    def discard(self, block_id: BlockId) -> None:
        """See `EvictionOrder.discard`."""
        self._blocks.pop(block_id, None)

    def pick(self) -> BlockId:
        """See `EvictionOrder.pick`."""
        return self._blocks.popitem(last=False)[0]

    def __len__(self) -> int:
        return len(self._blocks)
