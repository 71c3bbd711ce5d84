"""Commands for one worker, packed into as few frames as the limit on a message allows.

The order of the commands is kept. A long prompt is encoded on a thread, piece by piece, so that
the event loop goes on meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from runtime.wire import (
    Heartbeat,
    encode_admission,
    encode_commands,
    encode_heartbeat,
    encode_peer,
)
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    Command,
    PushTo,
    SetAdmission,
    StartDecode,
    StartPrefill,
)

# None ends the stream.
Outgoing = Command | KvExport | SetAdmission | Heartbeat | None
# More than any token id, and than the rest of a usual command, takes in a frame.
_BYTES_PER_TOKEN, _BYTES_PER_COMMAND = 5, 4096
# Sixteen stop strings of 256 characters, a thousand biases, and the names.
_MOST_BYTES_BESIDE_TOKENS = 40_960
# Encoding this much takes about a millisecond.
_BYTES_AT_ONCE = 256 * 1024


async def frames(outbox: "asyncio.Queue[Outgoing]", max_message_bytes: int) -> AsyncIterator[Any]:
    """Whatever is ready, frame by frame; ends with the first None."""
    # Taken out of the queue already: what did not go into the last frame.
    held: list[Outgoing] = []
    while True:
        item = held.pop() if held else await outbox.get()
        match item:
            case None:
                return
            case KvExport():
                yield encode_peer(item)
            case SetAdmission():
                yield encode_admission(item)
            case Heartbeat():
                yield encode_heartbeat(item)
            case _:
                commands, num_bytes = [item], _size_bound(item)
                while not outbox.empty() and not held:
                    following = outbox.get_nowait()
                    if following is None or isinstance(
                        following, KvExport | SetAdmission | Heartbeat
                    ):
                        held.append(following)
                        continue
                    num_bytes += _size_bound(following)
                    # A frame above the limit would break the session and every task on it.
                    if num_bytes > max_message_bytes // 4:
                        held.append(following)
                    else:
                        commands.append(following)
                if num_bytes > _BYTES_AT_ONCE:
                    yield await asyncio.to_thread(encode_commands, commands)
                else:
                    yield encode_commands(commands)


def max_sequence_tokens(max_message_bytes: int, vocab_size: int) -> int:
    """Prompt and answer that certainly fit into one command."""
    # A varint carries seven bits in a byte.
    bytes_per_token = max(1, -(-(vocab_size - 1).bit_length() // 7))
    return max(0, max_message_bytes - _MOST_BYTES_BESIDE_TOKENS) // bytes_per_token


def _size_bound(command: Command) -> int:
    match command:
        case StartPrefill() | AdmitGeneration():
            num_tokens = command.sequence.num_tokens
        case StartDecode():
            num_tokens = len(command.output_token_ids)
        case PushTo():
            num_tokens = 3 * len(command.target.block_ids)
        case _:
            num_tokens = 0
    return _BYTES_PER_COMMAND + _BYTES_PER_TOKEN * num_tokens
