"""The Admin service: the live state, read from the core on the event loop."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grpc

from cluster.errors import ClusterError
from router.core import RouterCore
from router.ledger_client import LedgerClient
from router.sequence import Sequence
from router.worker_link import WorkerLink
from runtime.clock import Clock
from runtime.grpc_errors import abort_with
from scheduling.errors import StateUnavailable
from scheduling.ids import TaskId, WorkerId
from scheduling.lifecycle import Phase
from tandemserve.api.v1 import admin_pb2 as pb
from tandemserve.api.v1 import admin_pb2_grpc
from tandemserve.version import VERSION

SERVICE_NAME = "tandemserve.api.v1.AdminService"
_DEFAULT_MAX_TASKS = 100
_DEFAULT_MAX_HOLDINGS = 1000
_MOST_LISTED = 10_000
_PROMPT_WAITS_FOR = "a prefill worker with room and little backlog"
_GENERATION_WAITS_FOR = "a decode worker with enough free KV blocks"

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class RouterIdentity:
    """What the status page says about this replica."""

    router_id: str
    model: str
    policy: str


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Reads; changes nothing."""

    def __init__(
        self,
        identity: RouterIdentity,
        core: RouterCore,
        ledger: LedgerClient,
        links: dict[WorkerId, WorkerLink],
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._core = core
        self._ledger = ledger
        self._links = links
        self._clock = clock
        self._started_at_s = clock.now()

    async def GetStatus(  # noqa: N802 - the name is given by the protocol
        self, request: pb.GetStatusRequest, context: Context
    ) -> pb.GetStatusResponse:
        """See AdminService.GetStatus."""
        state, counters = self._core.state, self._core.state.counters
        num_by_phase = dict.fromkeys(Phase, 0)
        for sequence in state.sequence_by_task.values():
            num_by_phase[sequence.phase] += 1
        return pb.GetStatusResponse(
            router_id=self._identity.router_id,
            version=VERSION,
            uptime_s=self._clock.now() - self._started_at_s,
            model=self._identity.model,
            policy=self._identity.policy,
            ledger_available=self._ledger.is_available,
            num_prefill_workers=len(state.fleet.with_role("prefill")),
            num_decode_workers=len(state.fleet.with_role("decode")),
            num_prompt_queued=num_by_phase[Phase.PROMPT_QUEUED],
            num_prefilling=num_by_phase[Phase.PREFILLING],
            num_generation_queued=num_by_phase[Phase.GENERATION_QUEUED],
            num_transferring=num_by_phase[Phase.TRANSFERRING],
            num_decoding=num_by_phase[Phase.DECODING],
            num_finished=counters.num_finished,
            num_failed=counters.num_failed,
            num_cancelled=counters.num_cancelled,
            num_output_tokens=counters.num_output_tokens,
            num_preemptions=counters.num_preemptions,
            num_migrations=counters.num_migrations,
        )

    async def ListWorkers(  # noqa: N802 - the name is given by the protocol
        self, request: pb.ListWorkersRequest, context: Context
    ) -> pb.ListWorkersResponse:
        """See AdminService.ListWorkers."""
        links = sorted(self._links.items())
        return pb.ListWorkersResponse(workers=[self._worker(link) for _, link in links])

    async def ListQueues(  # noqa: N802 - the name is given by the protocol
        self, request: pb.ListQueuesRequest, context: Context
    ) -> pb.ListQueuesResponse:
        """See AdminService.ListQueues."""
        state = self._core.state
        most = min(request.max_tasks or _DEFAULT_MAX_TASKS, _MOST_LISTED)
        return pb.ListQueuesResponse(
            num_prompt_tasks=len(state.prompt_queue),
            num_generation_tasks=len(state.generation_queue),
            prompt_tasks=self._tasks(state.prompt_queue.in_order(), most, _PROMPT_WAITS_FOR),
            generation_tasks=self._tasks(
                state.generation_queue.in_order(),
                most,
                _GENERATION_WAITS_FOR,
            ),
        )

    async def ListReservations(  # noqa: N802 - the name is given by the protocol
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        """See AdminService.ListReservations."""
        most = min(request.max_holdings or _DEFAULT_MAX_HOLDINGS, _MOST_LISTED)
        try:
            snapshot = await self._ledger.snapshot(most)
        except ClusterError as error:
            await abort_with(context, StateUnavailable(error.message))
        return pb.ListReservationsResponse(
            workers=[
                pb.WorkerReservations(
                    worker_id=book.worker.worker_id,
                    incarnation=book.worker.incarnation,
                    num_blocks=book.num_blocks,
                    num_reserved_blocks=book.num_reserved,
                )
                for book in snapshot.workers
            ],
            holdings=[
                pb.Holding(
                    task_id=holding.claim.task_id,
                    leg=holding.claim.leg,
                    worker_id=holding.worker.worker_id,
                    router_id=holding.router.router_id,
                    num_blocks=holding.num_blocks,
                    state=holding.state,
                )
                for holding in snapshot.holdings
            ],
            truncated=snapshot.next_page is not None,
        )

    def _worker(self, link: WorkerLink) -> pb.WorkerView:
        message = pb.WorkerView(
            worker_id=link.worker_id,
            role=link.role,
            address=link.address,
            incarnation=link.incarnation,
            state=link.state,
            problem=link.problem,
        )
        view = self._core.state.fleet.get(link.worker_id)
        if view is not None:
            message.num_blocks = view.hello.num_blocks
            message.num_free_blocks = view.load.num_free_blocks
            message.block_size = view.hello.block_size
            message.num_running = view.load.num_running
            message.num_waiting = view.load.num_waiting
            message.compatibility = view.hello.compatibility
        return message

    def _tasks(self, ids: Iterable[TaskId], most: int, waits_for: str) -> list[pb.QueuedTask]:
        by_task = self._core.state.sequence_by_task
        now = self._clock.now()
        return [_queued(by_task[task_id], waits_for, now) for task_id in islice(ids, most)]


def _queued(sequence: Sequence, waits_for: str, now: float) -> pb.QueuedTask:
    spec, waiting = sequence.request.spec, sequence.as_waiting()
    return pb.QueuedTask(
        task_id=sequence.task_id,
        tenant=spec.tenant,
        request_class=spec.request_class,
        waited_s=now - sequence.phase_since_s,
        time_to_deadline_s=waiting.deadline_at_s - now,
        num_prompt_tokens=waiting.num_prompt_tokens,
        num_predicted_tokens=waiting.num_response_tokens,
        num_occupied_blocks=waiting.num_occupied_blocks,
        waits_for=waits_for,
    )
