"""OpenTelemetry providers of one process, held by the process and not by the library's globals.

Nothing leaves the process unless a reader or exporter is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Tracer

from runtime.metrics import Metrics

_SCOPE = "tandem"


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a process measures with."""

    metrics: Metrics
    tracer: Tracer
    _meters: MeterProvider
    _tracers: TracerProvider

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """Send what is left and end the providers' threads; blocks up to the timeout."""
        self._meters.shutdown(timeout_millis=timeout_s * 1000)
        self._tracers.shutdown()


def start_telemetry(
    process: str,
    instance_id: str,
    *,
    version: str,
    metric_readers: Sequence[MetricReader] = (),
    span_processors: Sequence[SpanProcessor] = (),
) -> Telemetry:
    """Create the providers; nothing is recorded that nobody would receive."""
    resource = Resource.create(
        {
            "service.namespace": "tandem",
            "service.name": f"tandem-{process}",
            "service.instance.id": instance_id,
            "service.version": version,
        }
    )
    meters = MeterProvider(metric_readers, resource=resource, shutdown_on_exit=False)
    sampler = ALWAYS_ON if span_processors else ALWAYS_OFF
    tracers = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    for processor in span_processors:
        tracers.add_span_processor(processor)
    # Recording what nobody reads took 20 us a request.
    meter_provider = meters if metric_readers else NoOpMeterProvider()
    metrics = Metrics(meter_provider.get_meter(_SCOPE, version))
    return Telemetry(metrics, tracers.get_tracer(_SCOPE, version), meters, tracers)
