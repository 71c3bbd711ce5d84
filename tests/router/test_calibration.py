"""What was predicted of answers against what came: kept by the router, shown to operators."""

from router.admin.wire import calibration_to_proto
from router.events import EmitFinished
from router.testing import DECODE, CoreUnderTest, of_type, spec_of, through_prefill, tokens
from scheduling.prediction import ResponseLength


def finished(core: CoreUnderTest, request_id: str = "r", tenant: str = "default") -> EmitFinished:
    """An answer of two tokens."""
    core.ask(spec_of(request_id, tenant=tenant))
    task = through_prefill(core)
    (end,) = of_type(core.report(DECODE, tokens(task, 1, 12, finish="stop")), EmitFinished)
    return end


def test_an_ended_answer_is_compared_with_what_was_predicted_at_its_arrival() -> None:
    core = CoreUnderTest()
    assert calibration_to_proto(core.core.state.calibration) == []
    end = finished(core)
    assert end.predicted is not None
    report = core.core.state.calibration.report()
    assert (report.num_answers, report.num_cut) == (1, 0)
    assert report.covered_share == (1.0 if end.predicted.bound >= 2 else 0.0)
    assert report.mean_absolute_error == abs(end.predicted.mean - 2)


def test_what_is_known_of_a_running_answer_does_not_improve_its_prediction() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    task = through_prefill(core)
    sequence = core.core.state.sequence_by_task[task]
    at_arrival = sequence.predicted
    sequence.predicted = ResponseLength(at_arrival.mean + 1, at_arrival.mean + 1)
    (end,) = of_type(core.report(DECODE, tokens(task, 1, 12, finish="stop")), EmitFinished)
    assert end.predicted == at_arrival


def test_operators_see_all_tenants_first_and_then_each() -> None:
    core = CoreUnderTest()
    finished(core, tenant="b")
    finished(core, tenant="a")
    shown = calibration_to_proto(core.core.state.calibration)
    assert [(one.tenant, one.num_answers) for one in shown] == [("", 2), ("a", 1), ("b", 1)]
