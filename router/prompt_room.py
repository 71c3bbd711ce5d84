"""What large prompts may take of the router's memory, from their arrival to the end of the answer.

The number of waiting tasks is bounded elsewhere; ten thousand prompts of a megabyte would be
within that bound and fill any memory.
"""

from collections.abc import Callable
from heapq import nlargest

from scheduling.errors import CanNeverFit, QueueFull

# Shorter requests are not counted: max_prompt_queue bounds them, and they must get through while
# large ones are refused.
SHORT_BYTES = 16 * 1024
# A byte that arrives may be a token: a pointer in a tuple, its part of the name of a block, and
# for a while the message that it came in. Measured on CPython 3.11, rounded up.
MEMORY_PER_BYTE = 14
# What the tokenizer takes for each character of a text while it works on it, where every one of
# them is a word by itself, in one byte or in four. Measured with tokenizers 0.23, rounded up.
WORK_PER_ASCII_CHAR, WORK_PER_CHAR = 420, 640
DEFAULT_MAX_MIB = 1024
_MIB = 1024 * 1024


class PromptRoom:
    """Counts; used from the event loop only."""

    def __init__(
        self,
        max_mib: int = DEFAULT_MAX_MIB,
        num_threads: int = 1,
        on_freed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`num_threads` tokenise at a time; `on_freed` hears of all that is given back."""
        self._max_mib = max_mib
        self._num_threads = num_threads
        self._on_freed = on_freed
        # Memory of all that is held, as an upper bound.
        self.num_bytes = 0
        # Of texts that are tokenised or wait for it.
        self._works: set[Work] = set()

    @property
    def num_work_bytes(self) -> int:
        """What tokenising takes at most: that of the largest texts at once."""
        return sum(nlargest(self._num_threads, (work.num_bytes for work in self._works)))

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
        if self.num_bytes + self.num_work_bytes + num_bytes > self._max_mib * _MIB:
            raise self._full()
        self.num_bytes += num_bytes
        return Hold(self, num_bytes)

    def work_on(self, num_chars: int, num_chars_at_once: int, *, is_ascii: bool) -> "Work":
        """Room to tokenise a text that has its own already; it is to be given back by `done`.

        Raises: QueueFull while others have the room, CanNeverFit where there is not enough.
        """
        each = WORK_PER_ASCII_CHAR if is_ascii else WORK_PER_CHAR
        work = Work(self, each * num_chars_at_once if num_chars_at_once > SHORT_BYTES else 0)
        if not work.num_bytes:
            return work
        alone_bytes = work.num_bytes + MEMORY_PER_BYTE * num_chars
        if alone_bytes > self._max_mib * _MIB:
            raise CanNeverFit(
                f"a text of {num_chars} characters may take {-(-alone_bytes // _MIB)} MiB in the "
                "router while it is tokenised, since this tokenizer takes it whole, and all large "
                f"prompts get {self._max_mib}; shorten the prompt, send it as token ids, or raise "
                "max_prompt_mib of the router"
            )
        self._works.add(work)
        if self.num_bytes + self.num_work_bytes > self._max_mib * _MIB:
            self._works.discard(work)
            raise self._full()
        return work

    def _full(self) -> QueueFull:
        return QueueFull(
            f"large prompts fill the {self._max_mib} MiB that the router has for them; retry "
            "later, or raise max_prompt_mib of the router",
            retry_after_s=1.0,
        )

    def _give_back(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes
        if num_bytes:
            self._on_freed(num_bytes)

    def _work_done(self, work: "Work") -> None:
        if work in self._works:
            self._works.discard(work)
            self._on_freed(work.num_bytes)


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
        num_bytes, self._num_bytes = self._num_bytes, 0
        self._room._give_back(num_bytes)


class Work:
    """What one text takes while it is tokenised, from when it begins to wait for that."""

    __slots__ = ("_room", "num_bytes")

    def __init__(self, room: PromptRoom, num_bytes: int) -> None:
        self._room = room
        self.num_bytes = num_bytes

    def done(self) -> None:
        """Give the room back; harmless when repeated."""
        self._room._work_done(self)
