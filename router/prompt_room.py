"""What large prompts may take of the router's memory, from their arrival to the end of the answer.

The number of waiting tasks is bounded elsewhere; ten thousand prompts of a megabyte would be
within that bound and fill any memory.
"""

from scheduling.errors import CanNeverFit, QueueFull

# Shorter requests are not counted: max_prompt_queue bounds them, and they must get through while
# large ones are refused.
SHORT_BYTES = 16 * 1024
# A byte that arrives may be a token: a pointer in a tuple, its part of the name of a block, and
# for a while the message that it came in. Measured on CPython 3.11, rounded up.
MEMORY_PER_BYTE = 14
DEFAULT_MAX_MIB = 1024
_MIB = 1024 * 1024


class PromptRoom:
    """Counts; used from the event loop only."""

    def __init__(self, max_mib: int = DEFAULT_MAX_MIB) -> None:
        self._max_mib = max_mib
        # Memory of all that is held, as an upper bound.
        self.num_bytes = 0

    def hold(self, num_request_bytes: int) -> "Hold":
        """Room for a request of that size, until it is given back.

        Raises: QueueFull while others have the room, CanNeverFit where there is not enough.
        """
        if num_request_bytes <= SHORT_BYTES:
            return Hold(self, 0)
        num_bytes = MEMORY_PER_BYTE * num_request_bytes
        if num_bytes > self._max_mib * _MIB:
            raise CanNeverFit(
                f"a request of {num_request_bytes} bytes may take {-(-num_bytes // _MIB)} MiB in "
                f"the router, where all large prompts get {self._max_mib}; shorten the prompt, or "
                "raise max_prompt_mib of the router"
            )
        if self.num_bytes + num_bytes > self._max_mib * _MIB:
            raise QueueFull(
                f"large prompts fill the {self._max_mib} MiB that the router has for them; retry "
                "later, or raise max_prompt_mib of the router",
                retry_after_s=1.0,
            )
        self.num_bytes += num_bytes
        return Hold(self, num_bytes)


class Hold:
    """Room that one call has, until it is released or its block ends."""

    __slots__ = ("_num_bytes", "_room")

    def __init__(self, room: PromptRoom, num_bytes: int) -> None:
        self._room = room
        self._num_bytes = num_bytes

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the room back; harmless when repeated."""
        self._room.num_bytes -= self._num_bytes
        self._num_bytes = 0
