"""What the router records of predictions, and of its workers' models."""

from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from router.events import EmitFinished, PhaseTimings
from router.fleet import Fleet
from router.measure import record_finished, record_pass_times
from router.testing import hello_of
from runtime.telemetry import start_telemetry
from scheduling.batch_time_online import PassTimeError
from scheduling.ids import RequestId, WorkerId
from scheduling.messages import WorkerLoad
from scheduling.prediction import ResponseLength

TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


def points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    return [point for one in metrics if one.name == name for point in one.data.data_points]


def test_an_answer_is_compared_with_what_was_predicted_of_it(reader: InMemoryMetricReader) -> None:
    telemetry = start_telemetry("router", "r", version="1", metric_readers=[reader])
    for num_tokens in (8, 10, 40):
        end = EmitFinished(
            RequestId("r"), 0, "stop", None, num_tokens, TIMINGS, predicted=ResponseLength(10, 20)
        )
        record_finished(telemetry.metrics, end, "standard")
    (off,) = points(reader, "tandem_length_prediction_error_ratio")
    assert (off.count, off.sum) == (3, pytest.approx(2 / 8 + 30 / 40))
    by_bound = {
        point.attributes["within_bound"]: point.value
        for point in points(reader, "tandem_length_predictions_total")
    }
    assert by_bound == {True: 2, False: 1}
    telemetry.shutdown()


def test_what_a_worker_tells_of_its_model_is_recorded(reader: InMemoryMetricReader) -> None:
    telemetry = start_telemetry("router", "r", version="1", metric_readers=[reader])
    fleet = Fleet()
    fleet.add(hello_of("decode-0", 8))
    view = fleet.get(WorkerId("decode-0"))
    assert view is not None
    for worker in (None, view):  # gone, and not heard of yet
        record_pass_times(telemetry.metrics, worker)
    for num_passes in (64, 128):
        error = PassTimeError(num_passes, 0.1, 0.3)
        fleet.take_load(view, WorkerLoad(8, 0, 0, 0, pass_time_error=error), 0.0)
        record_pass_times(telemetry.metrics, view)
    found = points(reader, "tandem_pass_time_error_ratio")
    by_statistic = {point.attributes["statistic"]: (point.count, point.sum) for point in found}
    assert by_statistic == {"median": (2, pytest.approx(0.2)), "p90": (2, pytest.approx(0.6))}
    assert {point.attributes["role"] for point in found} == {"decode"}
    telemetry.shutdown()
