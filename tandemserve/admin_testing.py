"""The Admin half of the fake router in testing.py: one of everything, always the same."""

import threading

import grpc
from google.protobuf.message import Message

from tandemserve.api.v1 import admin_pb2, admin_pb2_grpc


class FakeAdmin(admin_pb2_grpc.AdminServiceServicer):
    """Answers every call; a worker that is looked at has one task less each time."""

    def __init__(self) -> None:
        self.workers = [_worker_view()]

    def arrived(
        self,
        request: Message,
        context: grpc.ServicerContext,
        is_over: threading.Event | None = None,
    ) -> None:
        """Note the call, or let it fail."""

    def GetStatus(  # noqa: N802
        self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetStatusResponse:
        self.arrived(request, context)
        return admin_pb2.GetStatusResponse(
            router_id="router-0",
            version="0.1.0",
            uptime_s=1.5,
            model="fake",
            policy="default",
            num_workers_of_other_policy=1,
            length_calibration=[_calibration(""), _calibration("acme")],
        )

    def ListWorkers(  # noqa: N802
        self, request: admin_pb2.ListWorkersRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListWorkersResponse:
        self.arrived(request, context)
        response = admin_pb2.ListWorkersResponse(workers=self.workers)
        for worker in self.workers:
            worker.num_tasks = max(0, worker.num_tasks - 1)
        return response

    def ListQueues(  # noqa: N802
        self, request: admin_pb2.ListQueuesRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListQueuesResponse:
        self.arrived(request, context)
        task = admin_pb2.QueuedTask(
            task_id="r1/0", tenant="default", time_to_deadline_s=-1.0, waits_for="a decode worker"
        )
        return admin_pb2.ListQueuesResponse(
            num_prompt_tasks=0, num_generation_tasks=1, generation_tasks=[task]
        )

    def ListReservations(  # noqa: N802
        self, request: admin_pb2.ListReservationsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListReservationsResponse:
        self.arrived(request, context)
        worker = admin_pb2.WorkerReservations(
            worker_id="decode-0", num_blocks=64, num_reserved_blocks=4
        )
        holding = admin_pb2.Holding(
            task_id="r1/0", leg="decode", worker_id="decode-0", num_blocks=4, state="reserved"
        )
        return admin_pb2.ListReservationsResponse(workers=[worker], holdings=[holding])

    def ListRequests(  # noqa: N802
        self, request: admin_pb2.ListRequestsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListRequestsResponse:
        self.arrived(request, context)
        return admin_pb2.ListRequestsResponse(
            requests=[_request_view()], num_matching=3, num_running=1, num_ended=2
        )

    def GetRequest(  # noqa: N802
        self, request: admin_pb2.GetRequestRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetRequestResponse:
        self.arrived(request, context)
        return admin_pb2.GetRequestResponse(request=_request_view(), timelines=[_timeline()])

    def CancelRequests(  # noqa: N802
        self, request: admin_pb2.CancelRequestsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.CancelRequestsResponse:
        self.arrived(request, context)
        first, *others = request.request_ids
        outcomes = [admin_pb2.CancelOutcome(request_id=first, cancelled=True, state="cancelled")]
        outcomes += [admin_pb2.CancelOutcome(request_id=name, state="finished") for name in others]
        return admin_pb2.CancelRequestsResponse(outcomes=outcomes)

    def SetWorkerAdmission(  # noqa: N802
        self, request: admin_pb2.SetWorkerAdmissionRequest, context: grpc.ServicerContext
    ) -> admin_pb2.SetWorkerAdmissionResponse:
        self.arrived(request, context)
        worker = _worker_view()
        worker.worker_id, worker.admission = request.worker_id, request.admission
        # A worker that is emptied loses one task each time that somebody looks.
        self.workers[:] = [worker]
        return admin_pb2.SetWorkerAdmissionResponse(worker=worker)


def _worker_view() -> admin_pb2.WorkerView:
    return admin_pb2.WorkerView(
        worker_id="decode-0",
        role="decode",
        state="ready",
        admission="open",
        num_blocks=64,
        num_free_blocks=60,
        num_tasks=2,
        num_swap_blocks=32,
        num_free_swap_blocks=31,
        num_timed_passes=640,
        pass_error_median=0.031,
        pass_error_p90=0.12,
        policy="fcfs",
        num_ranks=2,
    )


def _calibration(tenant: str) -> admin_pb2.LengthCalibration:
    return admin_pb2.LengthCalibration(
        tenant=tenant,
        num_answers=40,
        num_cut=3,
        covered_share=0.9,
        mean_absolute_error=21.5,
        mean_relative_error=0.4,
        allocation_factor=1.75,
    )


def _request_view() -> admin_pb2.RequestView:
    answer = admin_pb2.AnswerView(
        phase="decoding",
        phase_s=1.5,
        num_output_tokens=12,
        prefill_worker="prefill-0",
        decode_worker="decode-0",
        num_tries=2,
        num_migrations=1,
    )
    return admin_pb2.RequestView(
        request_id="r1",
        tenant="default",
        request_class="standard",
        state="running",
        age_s=2.0,
        num_prompt_tokens=30,
        max_tokens=64,
        answers=[answer],
    )


def _timeline() -> admin_pb2.Timeline:
    rows = (
        (0.0, "admitted", "prompt_queued", ""),
        (0.1, "prefill_dispatched", "prefilling", "prefill-0"),
        (0.5, "prefill_finished", "generation_queued", "prefill-0"),
        (0.5, "decode_bound", "transferring", "decode-0"),
        (0.6, "decode_started", "decoding", "decode-0"),
    )
    events = [
        admin_pb2.TimelineEvent(at_s=at_s, change=change, phase=phase, worker_id=worker)
        for at_s, change, phase, worker in rows
    ]
    return admin_pb2.Timeline(events=events)
