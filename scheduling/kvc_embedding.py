"""Which running sequence has so much allocation to spare that another fits into the end of it.

Unlike a guest of KVC pipelining, an embedded task brings nothing: prompt and response lie in the
host's last blocks. By the time it ends, the host has written as many tokens as it; what the host
has left then must still hold all of it. A host may hold several: after one, its allocation ends
where that one begins. A task that borrows blocks itself hosts nobody.

Source: CacheOPT, demand allocation and embedding (section 3.3).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduling.block_pool import num_blocks_for
from scheduling.ids import TaskId
from scheduling.kvc_pipeline import Guest, GuestTask, HostView

# CacheOPT's buffer.
NUM_BUFFER_TOKENS = 8


@dataclass(order=True, frozen=True, slots=True)
class _Host:
    # Tokens: up to the end of its allocation or the first block that it lent.
    num_left: int
    # Where it came in the order of hosts; decides between equals.
    number: int
    task_id: TaskId = field(compare=False)
    end_block: int = field(compare=False)


class EmbeddingHosts:
    """Running sequences by what is left of their allocation, as they stand at one moment."""

    def __init__(
        self, hosts: Iterable[HostView], block_size: int, num_buffer_tokens: int = NUM_BUFFER_TOKENS
    ) -> None:
        if block_size < 1 or num_buffer_tokens < 0:
            raise ValueError("the block size must be positive, the buffer at least 0")
        self._block_size = block_size
        self._num_buffer_tokens = num_buffer_tokens
        self._hosts: list[_Host] = []
        for number, host in enumerate(hosts):
            if host.num_lender_iterations is not None:
                continue
            end = host.lent_positions[0] if host.lent_positions else host.num_blocks
            left = end * block_size - host.num_written_tokens
            self._hosts.append(_Host(left, number, host.task_id, end))
        self._hosts.sort()

    def take(
        self, task_id: TaskId, num_prompt_tokens: int, num_response_tokens: int
    ) -> Guest | None:
        """Embed the task in the feasible host with the least left; None where none is feasible.

        O(log n) to find it. The task takes whole blocks, so the host gives up a little more.
        """
        num_blocks = num_blocks_for(num_prompt_tokens + num_response_tokens, self._block_size)
        needed = num_blocks * self._block_size + num_response_tokens + self._num_buffer_tokens
        index = bisect_left(self._hosts, needed, key=lambda host: host.num_left)
        if index == len(self._hosts):
            return None
        host = self._hosts.pop(index)
        left = host.num_left - num_blocks * self._block_size
        start = host.end_block - num_blocks
        insort(self._hosts, _Host(left, host.number, host.task_id, start))
        return Guest(task_id, host.task_id, start, num_blocks)


def embedding_fits(
    host: HostView,
    block_size: int,
    guest: Guest,
    task: GuestTask,
    num_response_tokens: int,
    num_buffer_tokens: int = NUM_BUFFER_TOKENS,
) -> bool:
    """The guest would still end in time and in place, as the host stands now.

    `task.num_new_blocks` are its own, in front of those that it borrows.
    """
    blocks = range(guest.start_block, guest.start_block + guest.num_blocks)
    room = (task.num_new_blocks + guest.num_blocks) * block_size
    num_left = blocks.start * block_size - host.num_written_tokens
    return (
        host.num_lender_iterations is None
        and blocks.stop <= host.num_blocks
        and not any(position in blocks for position in host.lent_positions)
        and task.num_written_tokens + num_response_tokens <= room
        and num_left - num_response_tokens >= num_buffer_tokens
    )
