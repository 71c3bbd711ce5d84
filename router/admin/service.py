"""The Admin service: the live state, read from the core on the event loop, and its few switches."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from cluster.errors import ClusterError
from router.admin.name_lookup import NameLookup
from router.admin.requests import cancel_requests, matching_requests, one_request
from router.admin.wire import (
    calibration_to_proto,
    filter_of,
    history_to_proto,
    outcomes_to_proto,
    queues_to_proto,
    requests_to_proto,
    worker_to_proto,
)
from router.admin.worker_admission import (
    admission_named,
    connected_view,
    require_successor,
    worker_away,
)
from router.core import RouterCore
from router.events import Event
from router.ledger_client import LedgerClient
from router.policy_check import num_deciding_otherwise
from router.worker_link import WorkerLink
from runtime.clock import Clock
from runtime.grpc_errors import abort_with
from runtime.logging import get_logger
from scheduling.errors import NoWorkerAvailable, StateUnavailable, TandemError
from scheduling.ids import WorkerId
from scheduling.lifecycle import Phase
from scheduling.messages import Admission, SetAdmission
from tandemserve.api.v1 import admin_pb2 as pb
from tandemserve.api.v1 import admin_pb2_grpc
from tandemserve.version import VERSION

SERVICE_NAME = "tandemserve.api.v1.AdminService"
_DEFAULT_MAX_TASKS = 100
_DEFAULT_MAX_HOLDINGS = 1000
_MOST_LISTED = 10_000
# How long a worker may take to say that it is cordoned, and how often its word is looked for.
_WORKER_ANSWER_S, _WORKER_POLL_S = 5.0, 0.01

log = get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class RouterIdentity:
    """What the status page says about this replica."""

    router_id: str
    model: str
    policy: str


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Reads the core; what it changes goes through the core or the worker."""

    def __init__(
        self,
        identity: RouterIdentity,
        core: RouterCore,
        ledger: LedgerClient,
        links: dict[WorkerId, WorkerLink],
        clock: Clock,
        apply: Callable[[Event], None],
    ) -> None:
        self._identity = identity
        self._core = core
        self._ledger = ledger
        self._links = links
        self._clock = clock
        self._apply = apply
        self._started_at_s = clock.now()

    async def GetStatus(  # noqa: N802 - the name is given by the protocol
        self, request: pb.GetStatusRequest, context: Context
    ) -> pb.GetStatusResponse:
        """See AdminService.GetStatus."""
        state, counters = self._core.state, self._core.state.counters
        num_by_role = Counter(view.hello.role for view in state.fleet)
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
            num_prefill_workers=num_by_role["prefill"],
            num_decode_workers=num_by_role["decode"],
            num_mixed_workers=num_by_role["mixed"],
            num_workers_of_other_policy=num_deciding_otherwise(state.fleet, self._identity.policy),
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
            length_calibration=calibration_to_proto(state.calibration),
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
        most = min(request.max_tasks or _DEFAULT_MAX_TASKS, _MOST_LISTED)
        return queues_to_proto(self._core.state, most, self._clock.now())

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

    async def ListRequests(  # noqa: N802 - the name is given by the protocol
        self, request: pb.ListRequestsRequest, context: Context
    ) -> pb.ListRequestsResponse:
        """See AdminService.ListRequests."""
        try:
            matching = matching_requests(self._core.state, filter_of(request), self._links)
        except TandemError as error:
            await abort_with(context, error)
        now = self._clock.now()
        return requests_to_proto(self._core.state, matching, request.max_requests, now)

    async def GetRequest(  # noqa: N802 - the name is given by the protocol
        self, request: pb.GetRequestRequest, context: Context
    ) -> pb.GetRequestResponse:
        """See AdminService.GetRequest."""
        try:
            record = one_request(self._core.state, request.request_id)
        except TandemError as error:
            await abort_with(context, error)
        return history_to_proto(self._core.state, record, self._clock.now())

    async def CancelRequests(  # noqa: N802 - the name is given by the protocol
        self, request: pb.CancelRequestsRequest, context: Context
    ) -> pb.CancelRequestsResponse:
        """See AdminService.CancelRequests."""
        try:
            outcomes = cancel_requests(
                self._core.state,
                request.request_ids,
                request.operator,
                request.reason,
                self._apply,
            )
        except TandemError as error:
            await abort_with(context, error)
        ended = [outcome.request_id for outcome in outcomes if outcome.cancelled]
        log.info("requests_cancelled", operator=request.operator, request_ids=ended)
        return outcomes_to_proto(outcomes)

    async def SetWorkerAdmission(  # noqa: N802 - the name is given by the protocol
        self, request: pb.SetWorkerAdmissionRequest, context: Context
    ) -> pb.SetWorkerAdmissionResponse:
        """See AdminService.SetWorkerAdmission."""
        try:
            link = await self._set_admission(request)
        except TandemError as error:
            await abort_with(context, error)
        return pb.SetWorkerAdmissionResponse(worker=self._worker(link))

    async def _set_admission(self, request: pb.SetWorkerAdmissionRequest) -> WorkerLink:
        wanted = admission_named(request.admission)
        advice = "look at `tandem admin workers`; who still starts is not there yet"
        workers = NameLookup("worker", self._links, advice)
        name = workers.resolve(request.worker_id)
        link = self._links[WorkerId(name)]
        view = connected_view(self._core.state, link)
        if wanted is not Admission.OPEN and not request.force:
            require_successor(self._core.state, view)
        link.send(SetAdmission(wanted))
        log.info("worker_admission_asked", worker_id=name, admission=wanted.value)
        deadline_at_s = self._clock.now() + _WORKER_ANSWER_S
        # The worker's word comes with its load, which announces nothing: look now and then.
        while view.load.admission is not wanted:
            if connected_view(self._core.state, link) is not view:
                raise worker_away(name, "lost", link.problem)
            if self._clock.now() >= deadline_at_s:
                raise NoWorkerAvailable(
                    f"worker {name} did not answer in {_WORKER_ANSWER_S:g} s; look at its log, "
                    "and try again",
                )
            await asyncio.sleep(_WORKER_POLL_S)
        return link

    def _worker(self, link: WorkerLink) -> pb.WorkerView:
        return worker_to_proto(link, self._core.state.fleet.get(link.worker_id))
