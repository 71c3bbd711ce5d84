"""What operators see of requests, and how they end them."""

from typing import Any

import pytest

from router.admin.requests import CancelOutcome, cancel_requests, matching_requests, one_request
from router.admin.wire import (
    filter_of,
    history_to_proto,
    queues_to_proto,
    request_to_proto,
    requests_to_proto,
)
from router.events import CallerLeft, EmitFailed, Event, WorkerConnected
from router.testing import (
    DECODE,
    PREFILL,
    CoreUnderTest,
    assert_empty,
    commands,
    hello_of,
    of_type,
    spec_of,
    through_prefill,
    tokens,
)
from scheduling.errors import InvalidRequest, UnknownName
from scheduling.ids import RequestId
from scheduling.messages import Admission, CancelTask, TaskReleased, WorkerLoad
from tandemserve.api.v1 import admin_pb2 as pb


def listed(core: CoreUnderTest, **fields: Any) -> list[str]:
    return [view.request_id for view in listing(core, **fields).requests]


def listing(core: CoreUnderTest, **fields: Any) -> pb.ListRequestsResponse:
    request, state = pb.ListRequestsRequest(**fields), core.core.state
    matching = matching_requests(state, filter_of(request))
    return requests_to_proto(state, matching, request.max_requests, core.now)


def view_of(core: CoreUnderTest, request_id: str) -> pb.RequestView:
    state = core.core.state
    return request_to_proto(state, one_request(state, request_id), core.now)


def cancel(
    core: CoreUnderTest, *request_ids: str, operator: str = "", reason: str = ""
) -> list[CancelOutcome]:
    def apply(event: Event) -> None:
        core.tell(event)

    return cancel_requests(core.core.state, request_ids, operator, reason, apply)


@pytest.fixture
def core() -> CoreUnderTest:
    """One request decodes, one is queued behind it, two have ended."""
    under_test = CoreUnderTest()
    under_test.ask(spec_of("first", tenant="acme"))
    under_test.tell(CallerLeft(RequestId("first")))
    under_test.report(PREFILL, TaskReleased(under_test.core.state.legs.held()[0].task_id))
    for leg in under_test.core.state.legs.held():
        under_test.report(leg.worker_id or "", TaskReleased(leg.task_id))
    under_test.ask(spec_of("second"))
    under_test.tell(CallerLeft(RequestId("second")))
    for leg in under_test.core.state.legs.held():
        under_test.report(leg.worker_id or "", TaskReleased(leg.task_id))
    under_test.ask(spec_of("r", request_class="batch"))
    through_prefill(under_test)
    under_test.ask(spec_of("queued", num_prompt=60, max_tokens=4, tenant="acme"))
    under_test.ask(spec_of("behind", num_prompt=60, max_tokens=4))
    return under_test


def test_running_ones_come_from_the_oldest_ended_ones_from_the_latest(core: CoreUnderTest) -> None:
    assert listed(core) == ["r", "queued", "behind", "second", "first"]
    assert listed(core, max_requests=2) == ["r", "queued"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"state": "running"}, ["r", "queued", "behind"]),
        ({"state": "ended"}, ["second", "first"]),
        ({"tenant": "acme"}, ["queued", "first"]),
        ({"tenant": "acme", "state": "ended"}, ["first"]),
        ({"request_class": "batch"}, ["r"]),
        ({"phase": "decoding"}, ["r"]),
        ({"phase": "cancelled"}, ["second", "first"]),
        ({"worker_id": DECODE, "state": "running"}, ["r"]),
        ({"worker_id": DECODE[:-2], "state": "running"}, ["r"]),
    ],
)
def test_filters_leave_what_matches_all_of_them(
    core: CoreUnderTest, wanted: dict[str, str], expected: list[str]
) -> None:
    assert listed(core, **wanted) == expected


@pytest.mark.parametrize("field", ["state", "phase", "request_class"])
def test_a_filter_of_no_meaning_is_refused_with_the_legal_values(
    core: CoreUnderTest, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}: 'funny' is unknown; use one of "):
        listed(core, **{field: "funny"})


def test_a_worker_that_nobody_knows_is_refused_with_the_nearest(core: CoreUnderTest) -> None:
    hint = "no worker 'decode-9' .* did you mean 'decode-0'"
    with pytest.raises(UnknownName, match=hint) as refused:
        listed(core, worker_id="decode-9")
    assert refused.value.field == "worker_id"
    # One that is there and has no requests is known all the same.
    state, wanted = core.core.state, filter_of(pb.ListRequestsRequest(worker_id="decode-9"))
    assert matching_requests(state, wanted, ["decode-9"]) == []


def test_the_numbers_say_what_the_list_leaves_out(core: CoreUnderTest) -> None:
    found = listing(core, max_requests=1)
    assert (found.num_matching, found.num_running, found.num_ended) == (5, 3, 2)


def test_what_an_answer_waits_for_is_said(core: CoreUnderTest) -> None:
    def waits_for(request_id: str) -> str:
        return view_of(core, request_id).answers[0].waits_for

    assert waits_for("r") == ""
    assert waits_for("behind") == "a prefill worker with room and little backlog"


def test_a_prompt_that_waits_for_a_closed_mixed_worker_says_who_closed_it() -> None:
    core = CoreUnderTest((hello_of("mixed-0", 64, role="mixed"),))
    core.ask(spec_of("a", num_prompt=200, max_tokens=10))
    core.ask(spec_of("b", num_prompt=200, max_tokens=10))

    def waits_for() -> str:
        return queues_to_proto(core.core.state, 10, core.now).prompt_tasks[0].waits_for

    assert waits_for() == "a mixed worker with room and little backlog"
    core.report("mixed-0", load=WorkerLoad(64, 0, 0, 0, admission=Admission.CORDONED))
    assert waits_for().startswith("a worker that takes new tasks: an operator cordoned the workers")


def test_a_stranded_prompt_is_listed_with_what_it_needs() -> None:
    core = CoreUnderTest((hello_of("prefill-0", 64), hello_of("decode-0", 64)))
    core.ask(spec_of("a", num_prompt=200, max_tokens=10))
    core.ask(spec_of("b", num_prompt=200, max_tokens=10))
    core.report("prefill-0", load=WorkerLoad(64, 0, 0, 0, is_draining=True))
    for leg in core.core.state.legs.held():
        core.report(leg.worker_id or "", TaskReleased(leg.task_id))
    queues = queues_to_proto(core.core.state, 10, core.now)
    known = [*queues.prompt_tasks, *queues.stranded_tasks]
    assert {task.task_id.partition("/")[0] for task in known} == {"a", "b"}
    small = (hello_of("prefill-1", 8), hello_of("decode-1", 8))
    for hello in small:
        core.tell(WorkerConnected(hello))
    queues = queues_to_proto(core.core.state, 10, core.now)
    assert queues.num_stranded_tasks == 2
    assert queues.stranded_tasks[0].waits_for == "a pair of workers that holds 210 tokens"


def test_one_request_is_found_by_its_beginning_and_by_a_task(core: CoreUnderTest) -> None:
    assert view_of(core, "que").request_id == "queued"
    assert view_of(core, core.task_id()).request_id == "r"
    assert view_of(core, "first").state == "cancelled"
    with pytest.raises(UnknownName, match="did you mean 'queued'"):
        view_of(core, "queed")


def test_cancelling_tells_both_workers_and_the_caller(core: CoreUnderTest) -> None:
    core.actions.clear()
    outcomes = cancel(core, "r", operator="eve", reason="too\nloud")
    assert [(o.request_id, o.cancelled) for o in outcomes] == [("r", True)]
    (failure,) = of_type(core.actions, EmitFailed)
    assert failure.error.code == "cancelled"
    assert failure.error.message.startswith("cancelled by an operator (eve): too loud; ask ")
    assert [w for w, c in commands(core.actions) if isinstance(c, CancelTask)] == [DECODE]


def test_cancelling_all_of_them_leaves_nothing(core: CoreUnderTest) -> None:
    cancel(core, "r", "queued", "behind")
    for leg in core.core.state.legs.held():
        core.report(leg.worker_id or "", TaskReleased(leg.task_id))
    assert_empty(core)


def test_one_wrong_id_ends_nothing(core: CoreUnderTest) -> None:
    with pytest.raises(UnknownName):
        cancel(core, "r", "nobody")
    with pytest.raises(InvalidRequest, match="0 of them; name 1 to 1000"):
        cancel(core)
    with pytest.raises(InvalidRequest, match="reason: is too long"):
        cancel(core, "r", reason="x" * 201)
    assert listed(core, state="running") == ["r", "queued", "behind"]


def test_what_has_ended_is_left_as_it_is(core: CoreUnderTest) -> None:
    (outcome,) = cancel(core, "first")
    assert (outcome.cancelled, outcome.state) == (False, "cancelled")


def test_a_finished_request_says_so(core: CoreUnderTest) -> None:
    task = core.task_id()
    core.report(DECODE, tokens(task, 1, 7, finish="stop"), TaskReleased(task))
    view = history_to_proto(core.core.state, one_request(core.core.state, "r"), core.now).request
    assert (view.state, view.error_code) == ("finished", "")
    assert view.HasField("ended_ago_s")
