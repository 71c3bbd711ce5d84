"""What is recorded comes out under its name, and nothing is kept where nobody listens."""

from typing import Any

from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime.metrics import Metrics
from runtime.telemetry import start_telemetry


def recorded(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


def record_everything(metrics: Metrics) -> None:
    metrics.request_ended("finished", "standard", num_output_tokens=12)
    metrics.first_token_emitted(0.2, "standard")
    metrics.answer_finished(0.01, "standard")
    metrics.queue_left("prompt", 0.05)
    metrics.kv_moved(0.003, 4096, "shared_memory")
    metrics.kv_pushed(2e9, "shared_memory")
    metrics.sequence_preempted()
    metrics.sequence_migrated()
    metrics.length_predicted(mean=30, bound=50, num_output_tokens=40)
    metrics.passes_timed("mixed", median_error=0.03, p90_error=0.2)


def test_every_metric_is_recorded_under_its_name() -> None:
    reader = InMemoryMetricReader()
    telemetry = start_telemetry("router", "router-0", version="1", metric_readers=[reader])
    record_everything(telemetry.metrics)
    points = recorded(reader)
    telemetry.shutdown()
    assert points.keys() == {
        "tandem_time_to_first_token_seconds",
        "tandem_time_per_output_token_seconds",
        "tandem_request_queue_time_seconds",
        "tandem_kv_transfer_seconds",
        "tandem_kv_transfer_bytes_total",
        "tandem_kv_push_bytes_per_second",
        "tandem_requests_total",
        "tandem_output_tokens_total",
        "tandem_preemptions_total",
        "tandem_migrations_total",
        "tandem_length_prediction_error_ratio",
        "tandem_length_predictions_total",
        "tandem_pass_time_error_ratio",
    }
    (ttft,) = points["tandem_time_to_first_token_seconds"]
    assert (ttft.sum, ttft.count, ttft.attributes) == (0.2, 1, {"request_class": "standard"})
    (moved,) = points["tandem_kv_transfer_bytes_total"]
    assert (moved.value, moved.attributes) == (4096, {"transport": "shared_memory"})
    (pushed,) = points["tandem_kv_push_bytes_per_second"]
    assert (pushed.sum, pushed.count) == (2e9, 1)
    assert pushed.attributes == {"transport": "shared_memory"}
    (ended,) = points["tandem_requests_total"]
    assert ended.attributes == {"outcome": "finished", "request_class": "standard"}
    (off,) = points["tandem_length_prediction_error_ratio"]
    assert (off.sum, off.count) == (0.25, 1)
    (bounded,) = points["tandem_length_predictions_total"]
    assert (bounded.value, bounded.attributes) == (1, {"within_bound": True})
    errors = {
        (point.attributes["role"], point.attributes["statistic"]): point.sum
        for point in points["tandem_pass_time_error_ratio"]
    }
    assert errors == {("mixed", "median"): 0.03, ("mixed", "p90"): 0.2}


def test_what_is_recorded_names_the_process_it_came_from() -> None:
    reader = InMemoryMetricReader()
    telemetry = start_telemetry("decode", "decode-1", version="1", metric_readers=[reader])
    telemetry.metrics.sequence_preempted()
    data = reader.get_metrics_data()
    telemetry.shutdown()
    assert data is not None
    attributes = data.resource_metrics[0].resource.attributes
    assert attributes["service.name"] == "tandem-decode"
    assert attributes["service.instance.id"] == "decode-1"


def test_without_anyone_listening_recording_is_harmless_and_spans_are_not_made() -> None:
    telemetry = start_telemetry("router", "router-0", version="1")
    record_everything(telemetry.metrics)
    assert not telemetry.tracer.start_span("prefill").is_recording()
    telemetry.shutdown()


def test_spans_reach_an_exporter_that_was_given() -> None:
    exporter = InMemorySpanExporter()
    processors = [SimpleSpanProcessor(exporter)]
    telemetry = start_telemetry("router", "r", version="1", span_processors=processors)
    with telemetry.tracer.start_as_current_span("prefill"):
        pass
    telemetry.shutdown()
    assert [span.name for span in exporter.get_finished_spans()] == ["prefill"]
