"""What operators are shown: the router's records as messages of the Admin service."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from router.admin.requests import CancelOutcome, RequestFilter
from router.ended_requests import AnswerRecord, RequestRecord
from router.sequence import Sequence as Answer
from router.state import RouterState
from router.timeline import Entry, Timeline
from router.worker_link import WorkerLink
from router.worker_view import WorkerView
from scheduling.ids import TaskId
from scheduling.length_calibration import Calibration, CalibrationLog
from scheduling.lifecycle import Phase
from tandemserve.api.v1 import admin_pb2 as pb

_DEFAULT_MAX_REQUESTS = 50
# Each costs the event loop some twenty microseconds.
_MOST_REQUESTS = 1000
_PROMPT_WAITS_FOR = "a prefill worker with room and little backlog"
_PROMPT_WAITS_FOR_MIXED = "a mixed worker with room and little backlog"
_GENERATION_WAITS_FOR = "a decode worker with enough free KV blocks"


def worker_to_proto(link: WorkerLink, view: WorkerView | None) -> pb.WorkerView:
    """One worker; the view is None while it is not connected."""
    message = pb.WorkerView(
        worker_id=link.worker_id,
        role=link.role,
        address=link.address,
        incarnation=link.incarnation,
        state=link.state,
        problem=link.problem,
    )
    if view is not None:
        load = view.load
        message.num_blocks = view.hello.num_blocks
        message.num_free_blocks = load.num_free_blocks
        message.block_size = view.hello.block_size
        message.num_running = load.num_running
        message.num_waiting = load.num_waiting
        message.compatibility = view.hello.compatibility
        message.policy = view.hello.policy
        message.num_ranks = view.hello.num_ranks
        message.num_tasks = load.num_tasks
        message.num_swap_blocks = load.num_swap_blocks
        message.num_free_swap_blocks = load.num_free_swap_blocks
        message.admission = "leaving" if load.is_draining else load.admission.value
        error = view.pass_time_error
        if error is not None:
            message.num_timed_passes = error.num_passes
            message.pass_error_median = error.median
            message.pass_error_p90 = error.p90
    return message


def calibration_to_proto(log: CalibrationLog) -> list[pb.LengthCalibration]:
    """Over all tenants first, then of each; nothing before the first answer."""
    in_all = log.report()
    if not in_all.num_answers:
        return []
    by_tenant = log.report_by_tenant()
    return [_calibration("", in_all), *(_calibration(*item) for item in sorted(by_tenant.items()))]


def queues_to_proto(state: RouterState, most: int, now: float) -> pb.ListQueuesResponse:
    """Both queues in order, and the prompts that are set aside; at most so many of each."""

    def tasks(ids: Iterable[TaskId]) -> list[pb.QueuedTask]:
        by_task = state.sequence_by_task
        return [_queued(state, by_task[task_id], now) for task_id in islice(ids, most)]

    return pb.ListQueuesResponse(
        num_prompt_tasks=len(state.prompt_queue),
        num_generation_tasks=state.num_waiting_answers,
        num_stranded_tasks=len(state.stranded),
        prompt_tasks=tasks(state.prompt_queue.in_order()),
        generation_tasks=tasks(
            chain(state.generation_queue.in_order(), state.answer_lines.in_order())
        ),
        stranded_tasks=tasks(state.stranded),
    )


def request_to_proto(state: RouterState, record: RequestRecord, now: float) -> pb.RequestView:
    """One request that runs or ended."""
    ended_at_s, deadline_at_s = record.ended_at_s, record.deadline_at_s
    return pb.RequestView(
        request_id=record.request_id,
        tenant=record.tenant,
        request_class=record.request_class,
        session=record.session,
        state=record.state,
        age_s=now - record.arrival_at_s,
        ended_ago_s=None if ended_at_s is None else now - ended_at_s,
        time_to_deadline_s=None if deadline_at_s is None else deadline_at_s - now,
        num_prompt_tokens=record.num_prompt_tokens,
        max_tokens=record.max_tokens,
        error_code=record.error_code,
        error_message=record.error_message,
        answers=[_answer_to_proto(state, record, answer, now) for answer in record.answers],
    )


def filter_of(request: pb.ListRequestsRequest) -> RequestFilter:
    """What the operator wants to see."""
    return RequestFilter(
        state=request.state,
        tenant=request.tenant,
        request_class=request.request_class,
        phase=request.phase,
        worker_id=request.worker_id,
    )


def requests_to_proto(
    state: RouterState, matching: Sequence[RequestRecord], wanted: int, now: float
) -> pb.ListRequestsResponse:
    """The first of those that match."""
    most = min(wanted or _DEFAULT_MAX_REQUESTS, _MOST_REQUESTS)
    return pb.ListRequestsResponse(
        requests=[request_to_proto(state, record, now) for record in matching[:most]],
        num_matching=len(matching),
        num_running=len(state.request_by_id),
        num_ended=len(state.ended),
    )


def history_to_proto(
    state: RouterState, record: RequestRecord, now: float
) -> pb.GetRequestResponse:
    """One request with the timeline of each answer."""
    return pb.GetRequestResponse(
        request=request_to_proto(state, record, now),
        timelines=[timeline_to_proto(record, answer) for answer in record.answers],
    )


def outcomes_to_proto(outcomes: Iterable[CancelOutcome]) -> pb.CancelRequestsResponse:
    """What became of the requests that were to end."""
    return pb.CancelRequestsResponse(
        outcomes=[
            pb.CancelOutcome(
                request_id=outcome.request_id, cancelled=outcome.cancelled, state=outcome.state
            )
            for outcome in outcomes
        ]
    )


def timeline_to_proto(record: RequestRecord, answer: AnswerRecord) -> pb.Timeline:
    """Everything that happened to one answer, in seconds since the request arrived."""
    timeline: Timeline = answer.timeline
    return pb.Timeline(
        index=answer.index,
        events=[_event_to_proto(entry, record.arrival_at_s) for entry in timeline.entries],
        num_dropped=timeline.num_dropped,
    )


def _event_to_proto(entry: Entry, arrival_at_s: float) -> pb.TimelineEvent:
    started_at_s = entry.started_at_s
    return pb.TimelineEvent(
        at_s=entry.at_s - arrival_at_s,
        change=entry.change.value,
        phase=entry.phase.value,
        worker_id=entry.worker_id,
        num_blocks=entry.num_blocks,
        num_output_tokens=entry.num_output_tokens,
        number_of_try=entry.number_of_try,
        reason=entry.reason,
        started_at_s=None if started_at_s is None else started_at_s - arrival_at_s,
    )


def _answer_to_proto(
    state: RouterState, record: RequestRecord, answer: AnswerRecord, now: float
) -> pb.AnswerView:
    waits_for = ""
    if record.ended_at_s is None:
        waits_for = waiting_for(
            state, state.request_by_id[record.request_id].sequences[answer.index]
        )
    return pb.AnswerView(
        index=answer.index,
        phase=answer.phase.value,
        phase_s=now - answer.phase_since_s,
        num_output_tokens=answer.num_output_tokens,
        prefill_worker=answer.prefill_worker,
        decode_worker=answer.decode_worker,
        waits_for=waits_for,
        num_tries=answer.num_tries,
        num_preemptions=answer.num_preemptions,
        num_migrations=answer.num_migrations,
    )


def waiting_for(state: RouterState, sequence: Answer) -> str:
    """What an answer waits for, in words; empty where it runs or is over."""
    prefill, decode = sequence.prefill, sequence.decode
    match sequence.phase:
        case Phase.PROMPT_QUEUED if sequence.task_id in state.stranded:
            return f"a pair of workers that holds {sequence.num_tokens_at_most} tokens"
        case Phase.PROMPT_QUEUED:
            return _waiting_prompt(state) if prefill is None else "its blocks on a prefill worker"
        case Phase.GENERATION_QUEUED:
            is_bound = decode is not None and decode.worker_id is not None
            return f"blocks of {decode.worker_id}" if decode and is_bound else _GENERATION_WAITS_FOR
        case Phase.TRANSFERRING:
            return f"its KV from {sequence.prefill_worker}"
        case Phase.DECODING:
            view = None if decode is None or decode.worker_id is None else decode.worker_id
            worker = None if view is None else state.fleet.get(view)
            return "" if worker is None or not worker.is_starving else "blocks to grow into"
        case _:
            return ""


def _waiting_prompt(state: RouterState) -> str:
    """What a prompt waits for that no worker has taken."""
    if state.fleet.max_request_tokens() == 0:
        return f"a worker that takes new tasks: {state.fleet.why_no_pair()}"
    has_prefill = any(view.load.takes_new_tasks for view in state.fleet.with_role("prefill"))
    return _PROMPT_WAITS_FOR if has_prefill else _PROMPT_WAITS_FOR_MIXED


def _calibration(tenant: str, found: Calibration) -> pb.LengthCalibration:
    return pb.LengthCalibration(
        tenant=tenant,
        num_answers=found.num_answers,
        num_cut=found.num_cut,
        covered_share=found.covered_share,
        mean_absolute_error=found.mean_absolute_error,
        mean_relative_error=found.mean_relative_error,
        allocation_factor=found.allocation_factor,
    )


def _queued(state: RouterState, sequence: Answer, now: float) -> pb.QueuedTask:
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
        waits_for=waiting_for(state, sequence),
    )
