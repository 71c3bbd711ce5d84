"""For tests: workers, requests, and a router core with a ledger that always has room."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import grpc

from router.core import RouterCore
from router.events import (
    Action,
    Event,
    ReportsArrived,
    RequestArrived,
    RequestSpec,
    ReservationAnswered,
    Reserve,
    SendCommand,
    Share,
    WorkerConnected,
)
from router.fleet import Fleet
from router.state import RouterSettings
from router.worker_view import may_be_asked
from scheduling.ids import BlockId, Generation, Incarnation, RequestId, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.messages import (
    PROTOCOL_VERSION,
    BlocksGranted,
    Command,
    DecodeStarted,
    KvPushed,
    PrefillStarted,
    Report,
    TaskReleased,
    TokensEmitted,
    WorkerHello,
    WorkerLoad,
)
from scheduling.placement import (
    Candidate,
    decode_preferences,
    mixed_preferences,
    prefill_preferences,
)
from scheduling.policies import policy_named
from scheduling.policy import Policy, growth_reserve_blocks
from scheduling.prefix_chain import PromptPrefix
from scheduling.sampling import SamplingParams, StopParams

BLOCK_SIZE = 4
PREFILL, DECODE = "prefill-0", "decode-0"
AnyCommand = TypeVar("AnyCommand")
AnyAction = TypeVar("AnyAction")


def hello_of(worker_id: str, num_blocks: int = 16, life: int = 1, **fields: Any) -> WorkerHello:
    """A worker whose role is the beginning of its name."""
    role = worker_id.partition("-")[0]
    hello = WorkerHello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=WorkerId(worker_id),
        incarnation=Incarnation(life),
        role=role,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=4,
        compatibility="same",
        model_fingerprint="model",
        num_growth_blocks=growth_reserve_blocks(num_blocks) if role == "decode" else 0,
    )
    return replace(hello, **fields)


def spec_of(
    request_id: str = "r", num_prompt: int = 6, max_tokens: int = 8, **fields: Any
) -> RequestSpec:
    """A standard request."""
    spec = RequestSpec(
        request_id=RequestId(request_id),
        prompt_token_ids=tuple(range(num_prompt)),
        sampling=SamplingParams(temperature=0.0, seed=5),
        stop=StopParams(max_tokens),
        num_choices=1,
        tenant="default",
        session="",
        request_class="standard",
        ttft_s=1.0,
        tpot_s=0.1,
        deadline_s=None,
    )
    return replace(spec, **fields)


def target_on(worker_id: str, num_blocks: int, life: int = 1) -> KvTarget:
    """Blocks that a decode worker granted."""
    export = KvExport("loopback", worker_id, 64, 32, WorkerId(worker_id), Incarnation(life), "here")
    blocks = tuple(BlockId(number) for number in range(num_blocks))
    return KvTarget(f"t@{worker_id}", export, blocks, tuple(Generation(1) for _ in blocks))


@dataclass
class CoreUnderTest:
    """A router core; the ledger's word is given at once unless it is held back."""

    workers: Iterable[WorkerHello] = (hello_of("prefill-0"), hello_of("decode-0"))
    settings: RouterSettings = field(default_factory=RouterSettings)
    policy: str | Policy = "default"
    answers_reserves: bool = True
    now: float = 0.0
    actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy = self.policy
        if isinstance(policy, str):
            policy = policy_named(policy, 0.5, 4)
        self.core = RouterCore(policy, OnlineQuantiles(), self.settings)
        for worker in self.workers:
            self.tell(WorkerConnected(worker))

    def tell(self, event: Event) -> list[Action]:
        """What the core wants next; questions to the ledger are answered on the way."""
        actions = self.core.handle(event, self.now)
        self.core.state.legs.check_invariants()
        self.actions += actions
        if self.answers_reserves:
            for reserve in [a for a in actions if isinstance(a, Reserve)]:
                actions = actions + self.grant(reserve)
        return actions

    def grant(self, reserve: Reserve) -> list[Action]:
        """The first preference has room."""
        worker_id, life = reserve.preferences[0]
        return self.tell(ReservationAnswered(reserve.claim, worker_id, life))

    def ask(self, spec: RequestSpec) -> list[Action]:
        """A request arrives."""
        return self.tell(RequestArrived(spec))

    def report(
        self, worker_id: str, *reports: Report, load: WorkerLoad | None = None
    ) -> list[Action]:
        """A worker says something."""
        return self.tell(ReportsArrived(WorkerId(worker_id), reports, load))

    def task_id(self, index: int = 0, request_id: str = "r") -> TaskId:
        """The present try at an answer."""
        return self.core.state.request_by_id[RequestId(request_id)].sequences[index].task_id


def commands(actions: Iterable[Action]) -> list[tuple[str, Command]]:
    """Commands with the worker that they go to, in order."""
    return [(a.worker_id, a.command) for a in actions if isinstance(a, SendCommand)]


def of_type(items: Iterable[object], kind: type[AnyAction]) -> list[AnyAction]:
    """Those of one kind."""
    return [item for item in items if isinstance(item, kind)]


def tokens(task_id: TaskId, first: int, *ids: int, finish: str | None = None) -> TokensEmitted:
    """What a worker sends for one iteration."""
    return TokensEmitted(task_id, first, ids, "x" * len(ids), finish_reason=finish)


def through_prefill(core: CoreUnderTest, num_blocks: int = 4) -> TaskId:
    """The only request is decoding: blocks granted early, first token there, KV arrived."""
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    core.report(DECODE, BlocksGranted(task, target_on(DECODE, num_blocks)))
    core.report(PREFILL, tokens(task, 0, 11))
    core.report(PREFILL, KvPushed(task, 2, 64, 0.001, "loopback"), TaskReleased(task))
    core.report(DECODE, DecodeStarted(task))
    return task


class GoneCaller:
    """The gRPC context of a call that ends with its request: no status can be sent any more."""

    def __init__(self, message: bytes) -> None:
        self._message = message

    async def read(self) -> bytes:
        """The request, as it travels."""
        return self._message

    def time_remaining(self) -> float | None:
        """The caller set no deadline."""
        return None

    async def abort(self, *status: object) -> NoReturn:
        """What gRPC does then."""
        raise grpc.aio.InternalError("the call is over")


def assert_empty(core: CoreUnderTest) -> None:
    """Nothing is remembered, promised or queued."""
    state = core.core.state
    assert not state.request_by_id
    assert not state.sequence_by_task
    assert len(state.prompt_queue) == len(state.generation_queue) == len(state.legs) == 0
    assert state.deadlines.next_at() is None


# --- placement by a look at every worker ------------------------------------------------------


def plain_prefill(
    fleet: Fleet,
    now: float,
    num_tokens: int,
    num_tokens_at_most: int,
    prefix: PromptPrefix | None,
) -> tuple[Candidate, ...]:
    """What `Preferences.prefill` finds, and who comes after."""
    candidates = (
        fleet.as_candidate(view, "general", prefix)
        for view in fleet
        if view.role == "prefill"
        and may_be_asked(view, now)
        and min(view.num_tokens, fleet.max_tokens_beyond(view)) >= num_tokens_at_most
    )
    return prefill_preferences(candidates, num_tokens)


def plain_mixed(
    fleet: Fleet,
    now: float,
    num_tokens: int,
    num_tokens_at_most: int,
    prefix: PromptPrefix | None,
    num_blocks_for_size: Callable[[int], int],
    due_at_s: float = math.inf,
) -> tuple[Candidate, ...]:
    """What `Preferences.mixed` finds, and who comes after."""
    candidates = (
        fleet.as_candidate(view, "general", prefix)
        for view in fleet
        if view.takes_prompts
        and may_be_asked(view, now, due_at_s)
        and view.num_tokens >= num_tokens_at_most
    )
    return mixed_preferences(candidates, num_tokens, num_blocks_for_size)


def plain_decode(
    fleet: Fleet,
    now: float,
    num_blocks: int,
    compatibility: str,
    share: Share,
    prefix: PromptPrefix | None,
    due_at_s: float = math.inf,
) -> tuple[Candidate, ...]:
    """What `Preferences.decode` finds, and who comes after."""
    candidates = fleet.decode_candidates(now, share, prefix, due_at_s)
    return decode_preferences(candidates, num_blocks, compatibility)
