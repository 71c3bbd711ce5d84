"""What a worker tells of its cached prefixes, as it travels: with a frame of reports."""

from collections.abc import Iterator

from runtime.wire.values import ProtocolError
from scheduling.prefix_chain import PrefixKey
from scheduling.prefix_index import PrefixChanges
from tandemserve.internal.v1 import worker_pb2 as pb

# Keys of 8 bytes each: far below the largest message.
MAX_KEYS = 65_536


def prefixes_to_proto(changes: PrefixChanges) -> pb.PrefixChanges:
    """At most MAX_KEYS of each kind; see `in_parts`."""
    return pb.PrefixChanges(
        added=changes.added, removed=changes.removed, is_snapshot=changes.is_snapshot
    )


def prefixes_from_proto(message: pb.PrefixChanges) -> PrefixChanges:
    """Inverse of `prefixes_to_proto`. Raises: ProtocolError."""
    for field in ("added", "removed"):
        if (num_keys := len(getattr(message, field))) > MAX_KEYS:
            raise ProtocolError(f"prefixes.{field}", f"{num_keys} keys, more than {MAX_KEYS}")
    return PrefixChanges(
        tuple(map(PrefixKey, message.added)),
        tuple(map(PrefixKey, message.removed)),
        message.is_snapshot,
    )


def in_parts(changes: PrefixChanges) -> Iterator[PrefixChanges]:
    """The same changes, each part small enough for a frame; nearly always one."""
    longest = max(len(changes.added), len(changes.removed), 1)
    for start in range(0, longest, MAX_KEYS):
        end = start + MAX_KEYS
        is_first = changes.is_snapshot and start == 0
        yield PrefixChanges(changes.added[start:end], changes.removed[start:end], is_first)
