"""What can go wrong while KV blocks move.

These never reach a user: a worker turns them into a decision.

TransferError
├── PeerGone            the receiving process ended or closed its export; place the request anew
├── StaleIncarnation    the export belongs to an earlier life of the receiver; fetch the new one
├── StaleGeneration     the receiver took the block back; drop the transfer
├── GrantWithdrawn      the receiver asks about blocks under a grant that it took back itself
├── TransferTimeout     the copy did not finish in the time given
├── TransferCancelled   the sender's own side cancelled it
├── LayoutMismatch      the two pools do not describe the same blocks
├── WrongVersion        the peer's release speaks KV over the network otherwise
├── WrongHost           shared memory of another host or container
├── BacklogFull         the bounded queue of this peer is full; try again later
├── LinkBroken          the connection broke, the receiver lives; place the request anew
├── PusherClosed        the sending side is shutting down
├── PathTooSlow         the way to the peer was measured, and is slower than asked for
├── ExportUnavailable   the memory cannot be allocated, mapped or joined
├── ChecksumMismatch    a block arrived, but not the bytes that were sent
├── DeviceFailed        the GPU or its driver refused a call
├── CopyStuck           a copy on the GPU neither ends nor fails
└── PushFailed          a defect on the sending side; the cause is attached
"""

from collections.abc import Sequence
from typing import ClassVar


class TransferError(Exception):
    """Root of this package's errors. The message ends in what to do."""

    code: ClassVar[str] = "transfer_failed"
    # True where the same transfer to the same peer can succeed later.
    retryable: ClassVar[bool] = False
    # True where no job for this life of the peer can succeed any more.
    peer_is_lost: ClassVar[bool] = False


class PeerGone(TransferError):
    """The receiving process ended or closed its export."""

    code = "kv_peer_gone"
    peer_is_lost = True

    def __init__(self, worker_id: str, incarnation: int) -> None:
        super().__init__(
            f"worker {worker_id} (incarnation {incarnation}) no longer exports its KV pool; "
            f"place the request on another decode worker"
        )
        self.worker_id, self.incarnation = worker_id, incarnation


class StaleIncarnation(TransferError):
    """The export belongs to an earlier life of the receiver."""

    code = "kv_stale_incarnation"
    peer_is_lost = True

    def __init__(self, worker_id: str, incarnation: int, current_incarnation: int) -> None:
        super().__init__(
            f"worker {worker_id} lives on as incarnation {current_incarnation}, the export is of "
            f"{incarnation}; ask the worker for its current export and reserve blocks again"
        )
        self.worker_id, self.incarnation = worker_id, incarnation
        self.current_incarnation = current_incarnation


class StaleGeneration(TransferError):
    """The block was taken back, or granted anew, since this generation was handed out."""

    code = "kv_stale_generation"

    def __init__(self, block_id: int, generation: int, expected: int | None) -> None:
        now = "granted to nobody" if expected is None else f"at generation {expected}"
        super().__init__(
            f"block {block_id} was granted as generation {generation} and is now {now}; "
            f"drop this transfer and reserve again if the request still lives"
        )
        self.block_id, self.generation = block_id, generation
        # None: the block is revoked and not granted again.
        self.expected = expected


class GrantWithdrawn(TransferError):
    """The asker polls blocks under a generation that is no longer granted."""

    code = "kv_grant_withdrawn"

    def __init__(self, block_ids: Sequence[int]) -> None:
        super().__init__(
            f"blocks {list(block_ids)} were revoked or granted anew; stop polling for this request"
        )
        self.block_ids = tuple(block_ids)


class TransferTimeout(TransferError):
    """The copy did not finish in the time given; blocks already published stay published."""

    code = "kv_transfer_timeout"
    retryable = True

    def __init__(self, transfer_id: str, num_blocks_done: int, num_blocks: int) -> None:
        super().__init__(
            f"transfer {transfer_id}: {num_blocks_done} of {num_blocks} blocks moved in time; "
            f"raise the transfer timeout or lower the load of the link"
        )
        self.transfer_id = transfer_id
        self.num_blocks_done, self.num_blocks = num_blocks_done, num_blocks


class TransferCancelled(TransferError):
    """This side cancelled the transfer; nothing of it is read or written any more."""

    code = "kv_transfer_cancelled"

    def __init__(self, transfer_id: str, num_blocks_done: int, num_blocks: int) -> None:
        super().__init__(
            f"transfer {transfer_id} was cancelled after {num_blocks_done} of {num_blocks} blocks; "
            f"release its blocks"
        )
        self.transfer_id = transfer_id
        self.num_blocks_done, self.num_blocks = num_blocks_done, num_blocks


class LayoutMismatch(TransferError):
    """Sender and receiver do not describe the same blocks."""

    code = "kv_layout_mismatch"

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; pair workers of one model, dtype, KV layout and block size")
        self.problem = problem


class WrongVersion(TransferError):
    """The receiver speaks another version of KV over a network."""

    code = "kv_wrong_version"

    def __init__(self, worker_id: str, theirs: int, ours: int) -> None:
        super().__init__(
            f"worker {worker_id} speaks version {theirs} of KV over a network, this worker {ours}; "
            f"run one release of Tandem on both, or share /dev/shm between them"
        )
        self.worker_id, self.theirs, self.ours = worker_id, theirs, ours


class WrongHost(TransferError):
    """The export is shared memory that this process cannot see."""

    code = "kv_wrong_host"

    def __init__(self, worker_id: str, export_host: str, own_host: str) -> None:
        super().__init__(
            f"worker {worker_id} exports shared memory of {export_host}, this process sees that of "
            f"{own_host}; share one /dev/shm between the containers or use a network transport"
        )
        self.worker_id, self.export_host, self.own_host = worker_id, export_host, own_host


class BacklogFull(TransferError):
    """The queue of this peer holds as many jobs as it may."""

    code = "kv_backlog_full"
    retryable = True

    def __init__(self, worker_id: str, max_jobs: int) -> None:
        super().__init__(
            f"{max_jobs} pushes to worker {worker_id} are waiting; keep the blocks parked and "
            f"submit again when has_room() says so"
        )
        self.worker_id, self.max_jobs = worker_id, max_jobs


class LinkBroken(TransferError):
    """The connection to a living receiver broke; what it had published stays published."""

    code = "kv_link_broken"
    retryable = True

    def __init__(self, worker_id: str, problem: str) -> None:
        super().__init__(
            f"the connection to worker {worker_id} broke ({problem}) and was made anew; drop this "
            f"transfer, the next one can succeed"
        )
        self.worker_id, self.problem = worker_id, problem


class PathTooSlow(TransferError):
    """The way to this peer was measured, and is slower than this worker's settings ask for."""

    code = "kv_path_too_slow"

    def __init__(self, worker_id: str, problem: str) -> None:
        super().__init__(
            f"the way to worker {worker_id} is too slow ({problem}); mend the faster way or the "
            f"network, or lower min_kv_bytes_per_s"
        )
        self.worker_id, self.problem = worker_id, problem


class PusherClosed(TransferError):
    """The sending side shuts down and takes no new jobs."""

    code = "kv_pusher_closed"

    def __init__(self) -> None:
        super().__init__("this worker is shutting down; place the request on another one")


class ExportUnavailable(TransferError):
    """The memory cannot be allocated, mapped or joined."""

    code = "kv_export_unavailable"

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem, self.fix = problem, fix


class ChecksumMismatch(TransferError):
    """Blocks arrived with other bytes than were sent. Found by `poll`, never copied onwards."""

    code = "kv_checksum_mismatch"

    def __init__(self, block_ids: Sequence[int]) -> None:
        super().__init__(
            f"blocks {list(block_ids)} do not match their checksum; revoke them and have the "
            f"prompt computed again"
        )
        self.block_ids = tuple(block_ids)


class DeviceFailed(TransferError):
    """The GPU or its driver refused a call; on a device that failed once, most calls fail."""

    code = "kv_device_failed"

    def __init__(self, call: str, problem: str, fix: str) -> None:
        super().__init__(f"{call} failed ({problem}); {fix}")
        self.call, self.problem, self.fix = call, problem, fix


class CopyStuck(TransferError):
    """A copy on the GPU neither ends nor fails; its target stays claimed."""

    code = "kv_copy_stuck"

    def __init__(self, transfer_id: str, waited_s: float, begun_by: str | None = None) -> None:
        """`begun_by`: another transfer, whose copy it is; this one was not begun."""
        whose = f"{begun_by}, begun before this one," if begun_by else "it"
        super().__init__(
            f"transfer {transfer_id}: a copy on the GPU has not ended {waited_s:.3g} s after "
            f"{whose} should have; if this is said again and again, restart this worker, and look "
            f"for Xid lines in the kernel log"
        )
        self.transfer_id, self.waited_s, self.begun_by = transfer_id, waited_s, begun_by

    def refusal_of(self, transfer_id: str) -> "CopyStuck":
        """What a transfer is told that comes while this copy is still stuck."""
        return CopyStuck(transfer_id, self.waited_s, self.begun_by or self.transfer_id)


class PushFailed(TransferError):
    """A defect on the sending side; `__cause__` holds it."""

    code = "kv_push_failed"

    def __init__(self, transfer_id: str, problem: str) -> None:
        super().__init__(
            f"transfer {transfer_id} failed unexpectedly ({problem}); the blocks stay with this "
            f"worker, report the logged traceback"
        )
        self.transfer_id = transfer_id
