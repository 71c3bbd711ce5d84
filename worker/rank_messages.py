"""What rank 0 and the other ranks of a worker say to each other, and its form on the way.

Both ends are processes of one worker, started by it; even so only values of ours are read.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from runtime.worker_config import DecodeConfig, PrefillConfig, WorkerConfig
from scheduling.kv_export import KvExport
from scheduling.step import SequenceStart, StepPlan
from scheduling.worker_events import (
    DropSequence,
    ExtendSequence,
    KvAction,
    ReplaceBlocks,
    WorkerEvent,
)

# Until every rank has imported what it needs, and has come to where they meet.
START_TIMEOUT_S = 120.0
# Longer than the longest prompt that any worker takes.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
# Of why a rank cannot go on.
MAX_REASON_CHARS = 2000
_CONFIGS: dict[str, type[WorkerConfig]] = {
    PrefillConfig.process: PrefillConfig,
    DecodeConfig.process: DecodeConfig,
}

# --- from rank 0 ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankSpec:
    """What a rank is to become; the first message."""

    process: Literal["prefill", "decode"]
    # See `public_settings`.
    config_json: str
    rank: int
    # Of the worker's life.
    incarnation: int
    num_threads: int
    # A file at which the ranks meet, and how long each exchange may wait.
    meeting_place: str
    timeout_s: float

    def config(self) -> WorkerConfig:
        """The settings of the worker."""
        return _CONFIGS[self.process].model_validate_json(self.config_json)


def public_settings(config: WorkerConfig) -> str:
    """What somebody set, without the secrets, as JSON; the rest follows from it at every rank."""
    public = config.model_copy(update={"redis_url": None})
    return public.model_dump_json(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many blocks a rank's pool and its host memory have: as many at every rank."""

    num_blocks: int
    num_swap_blocks: int


@dataclass(frozen=True, slots=True)
class TokensSampled:
    """What rank 0 sampled in the latest step."""

    slots: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PeerIntroduced:
    """A pool that the worker will push into: connect ahead of the first push."""

    export: KvExport


# In the order in which rank 0 did the same; a SequenceStart enters, a StepPlan is computed.
RankCall: TypeAlias = (
    SequenceStart
    | ExtendSequence
    | ReplaceBlocks
    | DropSequence
    | TokensSampled
    | PeerIntroduced
    | StepPlan
    | KvAction
)


@dataclass(frozen=True, slots=True)
class RankCalls:
    """Calls that a rank makes one after the other."""

    calls: tuple[RankCall, ...]


# --- from the other ranks ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankStarted:
    """The process runs and is about to meet the others."""


@dataclass(frozen=True, slots=True)
class RankLoaded:
    """The share of the model is loaded; `arithmetic` as `ModelRunner.arithmetic`."""

    arithmetic: str
    # So many KV blocks have room beside it.
    num_blocks: int


@dataclass(frozen=True, slots=True)
class PoolMade:
    """The pool is there, and the rank waits for calls."""

    # Where others may push into it.
    export: KvExport | None


@dataclass(frozen=True, slots=True)
class KvExpected:
    """An `ExpectKv` has been performed: others may be told to push."""


@dataclass(frozen=True, slots=True)
class KvHappened:
    """What the rank's side of the KV transfer has to tell, in its order."""

    events: tuple[WorkerEvent, ...]


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The last message of a rank that cannot go on."""

    message: str

    @classmethod
    def of(cls, error: Exception) -> "RankFailed":
        """In one line, and without what nobody reads: a device tells of its errors in many."""
        told = " ".join(str(error).split()) or type(error).__name__
        return cls(told if len(told) <= MAX_REASON_CHARS else f"{told[:MAX_REASON_CHARS]}...")


RankMessage: TypeAlias = (
    RankSpec
    | PoolSize
    | RankCalls
    | RankStarted
    | RankLoaded
    | PoolMade
    | KvExpected
    | KvHappened
    | RankFailed
)


def encode(message: RankMessage) -> bytes:
    """As `decode` reads it."""
    return pickle.dumps(message, protocol=5)


def decode(data: bytes) -> Any:
    """The message. Raises: pickle.UnpicklingError for anything but values of ours."""
    return _OwnValues(io.BytesIO(data)).load()


class _OwnValues(pickle.Unpickler):
    """Finds classes of messages and of what they hold, and nothing that does something."""

    def find_class(self, module: str, name: str) -> Any:
        found = None
        if module == __name__ or module.startswith("scheduling."):
            found = super().find_class(module, name)
        if not isinstance(found, type):
            raise pickle.UnpicklingError(f"{module}.{name} is no value that ranks exchange")
        return found
