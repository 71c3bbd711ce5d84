"""How fast KV has been copied to host memory and back lately."""

from dataclasses import dataclass
from typing import Final

# Of the latest copy in the mean, and of the assumed rate each time that nothing was copied for it.
_WEIGHT: Final = 0.25
_RETURN: Final = 0.05


@dataclass(slots=True)
class _Way:
    """A moving mean over blocks, so that long copies count for what they are."""

    assumed_s_per_block: float
    blocks: float = 0.0
    seconds: float = 0.0

    @property
    def s_per_block(self) -> float:
        return self.seconds / self.blocks if self.blocks else self.assumed_s_per_block

    def observe(self, num_blocks: int, seconds: float) -> None:
        if not self.blocks:
            # What is assumed counts like one copy: the first one of all may find memory unmapped.
            self.blocks, self.seconds = num_blocks, num_blocks * self.assumed_s_per_block
        self.blocks += _WEIGHT * (num_blocks - self.blocks)
        self.seconds += _WEIGHT * (seconds - self.seconds)

    def go_back(self) -> None:
        expected_s = self.blocks * self.assumed_s_per_block
        self.seconds += _RETURN * (expected_s - self.seconds)


class SwapPace:
    """Seconds of a copy, each way by itself; what starting one costs is in the mean."""

    def __init__(self, block_bytes: int, bytes_per_s: float) -> None:
        """`bytes_per_s` is assumed of both ways before the first copy."""
        if block_bytes < 1 or bytes_per_s <= 0:
            raise ValueError(f"a block has bytes and a rate, got {block_bytes} and {bytes_per_s}")
        self._out = _Way(block_bytes / bytes_per_s)
        self._back = _Way(block_bytes / bytes_per_s)

    def observe(self, num_blocks: int, seconds: float, *, is_out: bool) -> None:
        """So many blocks were copied in that time; none, or no time, says nothing."""
        if num_blocks > 0 and 0 < seconds < float("inf"):
            (self._out if is_out else self._back).observe(num_blocks, seconds)

    def was_avoided(self) -> None:
        """It was too slow to be used, and so is not measured: it is not believed for ever."""
        self._out.go_back()
        self._back.go_back()

    def out_s(self, num_blocks: int) -> float:
        """Expected time of a copy to host memory."""
        return num_blocks * self._out.s_per_block

    def back_s(self, num_blocks: int) -> float:
        """Expected time of a copy from host memory."""
        return num_blocks * self._back.s_per_block
