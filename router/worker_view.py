"""One connected worker as the router sees it, and whether it may get something new."""

import math
from dataclasses import dataclass, field
from typing import Final

from router.events import DECODE_LEG, GROWTH, PREFILL_LEG, Role, Share
from router.leg import Leg
from scheduling.backlog import NO_LIMIT
from scheduling.batch_time_online import PassTimeError
from scheduling.block_leases import LentPlace
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.messages import WorkerHello, WorkerLoad
from scheduling.parked_due import is_before_parked
from scheduling.prefix_index import PrefixIndex
from scheduling.task_queue import TaskQueue

# The role of a decode worker that computes prompts as well.
MIXED: Final = "mixed"


@dataclass(slots=True)
class WorkerView:
    """One connected worker."""

    hello: WorkerHello
    load: WorkerLoad
    # Blocks of legs that this router has there or is asking for.
    num_promised_blocks: int = 0
    # Prompt tokens dispatched by this router whose first token has not come back.
    num_backlog_tokens: int = 0
    max_backlog_tokens: int = NO_LIMIT  # it gets new prompts while these are fewer
    # Of legs in place whose answers have no room of their own yet: what they hold, and will need.
    num_staged_blocks: int = 0
    num_due_blocks: int = 0
    # Larger for whoever was given a task later; 0: never.
    last_taken: int = 0
    # Nothing new before this instant: the ledger or the worker said no.
    paused_until_s: float = 0.0
    # No answer there could wait for a prompt that cannot.
    makes_no_room_before_s: float = 0.0
    # Running responses wait for blocks: they come before new ones.
    is_starving: bool = False
    # Of all decode legs: what they can ever need.
    num_tokens_at_most: int = 0
    # Decode legs of this router that hold blocks there, or are asking for some.
    decode_legs: dict[TaskId, Leg] = field(default_factory=dict)
    # What they borrow, or are to borrow, by who lends it and who borrows it.
    places_by_host: dict[TaskId, dict[TaskId, LentPlace]] = field(default_factory=dict)
    # Of the connection, in the order of all.
    number: int = 0
    # Something changed since somebody looked for places to borrow.
    has_new_places: bool = True
    # For what that was: a task, or so many arrivals.
    looked_at_for: TaskId | int | None = None
    # The same, where it is for answers that wait in place.
    has_places_for_line: bool = True
    # Tasks of this router whose KV lies in its host memory, the next to go on first.
    parked: TaskQueue = field(init=False)
    # When the first of all that are parked there goes before newcomers, as told with its load; -inf
    # where they always do.
    told_parked_due_at_s: float = -math.inf
    # Which beginnings of prompts it has.
    prefixes: PrefixIndex = field(init=False)
    # How far its model of its passes was off, as it told last; None before.
    pass_time_error: PassTimeError | None = None
    # Its name, and which of its lives this is.
    life: tuple[WorkerId, Incarnation] = field(init=False)
    # Which half of a task it computes.
    role: Role = field(init=False)
    # A decode worker that computes prompts as well, in place.
    takes_prompts: bool = field(init=False)
    # Tokens whose KV the whole pool holds, of one task.
    num_tokens: int = field(init=False)
    # What new tasks may use: all but the growth reserve of a decode worker.
    num_general_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        hello = self.hello
        self.life = hello.worker_id, hello.incarnation
        self.role = PREFILL_LEG if hello.role == PREFILL_LEG else DECODE_LEG
        self.takes_prompts = hello.role == MIXED
        self.num_tokens = (hello.max_task_blocks or hello.num_blocks) * hello.block_size
        self.num_general_blocks = hello.num_blocks - hello.num_growth_blocks
        self.parked = TaskQueue(self.hello.num_blocks)
        self.prefixes = PrefixIndex(self.hello.num_blocks)

    @property
    def has_parked(self) -> bool:
        """KV of somebody, of any router, lies in its host memory."""
        return self.load.num_parked > 0 or len(self.parked) > 0

    @property
    def parked_due_at_s(self) -> float:
        """Newcomers that are due sooner go before all that are parked there, and no others."""
        task_id = self.parked.peek()
        if task_id is None:
            return self.told_parked_due_at_s
        # A worker does not know what came before the present try, nor when the request must end.
        return min(self.told_parked_due_at_s, self.decode_legs[task_id].parked_due_at_s)

    def places_changed(self) -> None:
        """There may be blocks to borrow that there were not."""
        self.has_new_places = self.has_places_for_line = True

    @property
    def is_swapping_itself(self) -> bool:
        """It decides whose KV lies in host memory; a task that does so is still decoding."""
        return self.hello.max_task_blocks > 0


def may_be_asked(view: WorkerView, now: float, due_at_s: float = math.inf) -> bool:
    """It may get something new at this instant: a task whose next token is due then."""
    if view.paused_until_s > now or not is_open_to_some(view):
        return False
    return not view.has_parked or is_before_parked(due_at_s, view.parked_due_at_s, now)


def is_open_to_some(view: WorkerView) -> bool:
    """It takes new tasks, be it only such as are due soon, unless it refused one a moment ago."""
    # What is parked comes before what is new, also that of other routers, unless its worker says.
    is_closed = view.has_parked and view.told_parked_due_at_s == -math.inf
    return not (is_closed or view.is_starving) and view.load.takes_new_tasks


def free_estimate(view: WorkerView, share: Share) -> int:
    """Blocks of that share that a task may be promised, as far as this router knows."""
    # The reported free count also shows what other routers' tasks use; it may lag behind our own
    # promises, so the smaller of the two is believed.
    hello = view.hello
    num_free, reported = hello.num_blocks - view.num_promised_blocks, view.load.num_free_blocks
    if reported < num_free:
        num_free = reported
    if share != GROWTH:
        num_free -= hello.num_growth_blocks
    return num_free if num_free > 0 else 0
