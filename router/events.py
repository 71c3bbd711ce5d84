"""What the router core is told and what it wants done. Values only; serve.py does the rest."""

import math
from typing import Final, Literal, NamedTuple

from scheduling.errors import TandemError
from scheduling.goals import Goals
from scheduling.ids import Incarnation, RequestId, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import Command, Report, TokensEmitted, WorkerHello, WorkerLoad
from scheduling.prediction import RequestFeatures, ResponseLength
from scheduling.prefix_chain import PromptPrefix
from scheduling.prefix_index import PrefixChanges
from scheduling.sampling import PromptLogprobs, SamplingParams, StopParams
from scheduling.value import value

# Which half of a task a reservation is for.
Role = Literal["prefill", "decode"]
PREFILL_LEG: Final = "prefill"
DECODE_LEG: Final = "decode"
# Shares of a worker's blocks: what any task may use, and what includes the growth reserve.
Share = Literal["general", "growth"]
GENERAL: Final = "general"
GROWTH: Final = "growth"


@value
class Claim:
    """One try to hold blocks for one leg of a task; later tries have larger numbers."""

    task_id: TaskId
    role: Role
    number: int


@value
class RequestSpec:
    """A checked and tokenised request; every default is filled in."""

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopParams
    # How many answers; answer i draws with seed + i.
    num_choices: int
    tenant: str
    session: str
    # "interactive", "standard" or "batch".
    request_class: str
    ttft_s: float
    tpot_s: float
    # Seconds the caller is willing to wait for the end, or None.
    deadline_s: float | None
    # Cached prompts are shared among requests of equal salt only.
    cache_salt: str = ""
    # The keys of the prompt's blocks, where they were computed ahead.
    prefix: PromptPrefix | None = None

    # Of each answer that another router began: its tokens, or None where it has ended. Empty for
    # a new request.
    resumed: tuple[tuple[int, ...] | None, ...] = ()
    # How long the answer will be; only a simulation knows.
    known_output_tokens: int | None = None
    # Until the last token, where the caller named a goal for it. Missing it ends nothing.
    jct_s: float = math.inf
    # Of each single gap, where the caller named one; at least tpot_s.
    tbt_s: float = math.inf

    @property
    def goals(self) -> Goals:
        """What the caller wishes of each answer."""
        return Goals(self.ttft_s, self.tpot_s, self.jct_s, self.tbt_s)

    def features(
        self, arrival_at_s: float | None = None, num_output_tokens: int = 0
    ) -> RequestFeatures:
        """What the length predictor learns from."""
        return RequestFeatures(
            tenant=self.tenant,
            request_class=self.request_class,
            num_prompt_tokens=len(self.prompt_token_ids),
            max_tokens=self.stop.max_tokens,
            num_output_tokens=num_output_tokens,
            arrival_at_s=arrival_at_s,
            known_output_tokens=self.known_output_tokens,
        )


# --- events -----------------------------------------------------------------------------------


@value
class RequestArrived:
    spec: RequestSpec


@value
class CallerLeft:
    """The client closed its stream or cancelled."""

    request_id: RequestId


@value
class OperatorCancelled:
    """An operator ends the request; the message tells the caller who and why."""

    request_id: RequestId
    message: str


@value
class ReaderFellBehind:
    """The caller left more of the answer unread than may be kept for it."""

    request_id: RequestId
    max_bytes: int
    # The limit is that of all answers together, and of this one most was unread.
    is_shared: bool = False


@value
class DrainTimedOut:
    """The router ends, and the time that running requests had for it is over."""


@value
class WorkerConnected:
    hello: WorkerHello


@value
class WorkerLost:
    """The session broke: every task that it carried has ended on the worker."""

    worker_id: WorkerId
    incarnation: Incarnation


@value
class ReportsArrived:
    worker_id: WorkerId
    reports: tuple[Report, ...]
    load: WorkerLoad | None
    # What changed of the prefixes that the worker keeps.
    prefixes: PrefixChanges | None = None


@value
class ReservationAnswered:
    """The ledger's answer to Reserve: a worker, or None when nobody has room."""

    claim: Claim
    worker_id: WorkerId | None
    # The life of the worker that the blocks were reserved on; set with worker_id.
    incarnation: Incarnation | None = None
    # False where the ledger is away: the blocks are wished for, and the worker decides.
    is_booked: bool = True


@value
class ExtensionAnswered:
    """The ledger's answer to Extend."""

    claim: Claim
    num_blocks: int
    granted: bool
    is_inherited: bool = False


@value
class TimeReached:
    """A WakeAt fell due."""


Event = (
    RequestArrived
    | CallerLeft
    | OperatorCancelled
    | ReaderFellBehind
    | DrainTimedOut
    | WorkerConnected
    | WorkerLost
    | ReportsArrived
    | ReservationAnswered
    | ExtensionAnswered
    | TimeReached
)

# --- actions ----------------------------------------------------------------------------------


@value
class SendCommand:
    worker_id: WorkerId
    command: Command


@value
class IntroducePeer:
    """Tell a prefill worker of a pool that it will push into: mapping a large one takes a while."""

    worker_id: WorkerId
    export: KvExport


@value
class Reserve:
    """Ask the ledger for blocks on the first of these workers that has room."""

    claim: Claim
    preferences: tuple[tuple[WorkerId, Incarnation], ...]
    num_blocks: int
    # "growth" for a task too large for the general share.
    share: Share


@value
class Extend:
    """Ask the ledger for more blocks for a running decode leg."""

    claim: Claim
    num_blocks: int
    sequence_number: int
    # The task has these blocks already: they were lent to it, and have ceased to be.
    is_inherited: bool = False


@value
class TransferHolding:
    """The KV moved: release the prefill holding, commit this decode holding."""

    claim: Claim


@value
class ReleaseHolding:
    claim: Claim


@value
class PhaseTimings:
    """Where the time of one answer went, seconds by the router's clock."""

    prompt_queue_s: float
    prefill_s: float
    generation_queue_s: float
    transfer_s: float
    decode_s: float
    ttft_s: float
    # None below two tokens.
    tpot_s: float | None
    total_s: float
    num_blocks_moved: int
    num_bytes_moved: int
    transport: str
    prefill_worker: str
    decode_worker: str
    early_binding: bool
    num_preemptions: int
    num_migrations: int
    # Blocks that the decode worker had already.
    num_blocks_skipped: int = 0
    # Of another answer's, that the latest try began in.
    num_blocks_borrowed: int = 0
    # Of the preemptions, how often the KV moved to host memory.
    num_swaps: int = 0
    # By all tries, and the prefill workers' own time for it, waiting for their turn left out.
    num_bytes_pushed: int = 0
    push_s: float = 0.0


@value
class EmitPromptLogprobs:
    """Logprobs of the next prompt tokens; all of them come before any output."""

    request_id: RequestId
    logprobs: PromptLogprobs


class EmitTokens(NamedTuple):
    """Tokens of answer `index`; the worker's own message is passed on, not copied.

    A named tuple, since one is made for every token.
    """

    request_id: RequestId
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks for
    tokens: TokensEmitted


@value
class EmitFinished:
    request_id: RequestId
    index: int
    finish_reason: str
    matched_stop: str | int | None
    num_output_tokens: int
    timings: PhaseTimings
    # Prompt tokens whose KV was not computed for this answer.
    num_cached_tokens: int = 0
    # How long it was expected to be, when it arrived; None where that is not told.
    predicted: ResponseLength | None = None


@value
class EmitFailed:
    """The whole request ends with this error."""

    request_id: RequestId
    error: TandemError
    gpu_work_spent: bool


@value
class WakeAt:
    """Deliver TimeReached at this instant, or sooner."""

    at_s: float


Action = (
    SendCommand
    | IntroducePeer
    | Reserve
    | Extend
    | TransferHolding
    | ReleaseHolding
    | EmitPromptLogprobs
    | EmitTokens
    | EmitFinished
    | EmitFailed
    | WakeAt
)
