"""Turns the end of an answer into metrics, and what workers say of their models: never a token."""

from router.events import EmitFailed, EmitFinished
from router.worker_view import WorkerView
from runtime.metrics import Metrics
from scheduling.errors import DeadlineExceeded, ReaderTooSlow, RequestCancelled


def record_finished(metrics: Metrics, finished: EmitFinished, request_class: str) -> None:
    """One answer came to its end."""
    timings = finished.timings
    metrics.request_ended("finished", request_class, finished.num_output_tokens)
    predicted = finished.predicted
    if predicted is not None:
        metrics.length_predicted(predicted.mean, predicted.bound, finished.num_output_tokens)
    metrics.first_token_emitted(timings.ttft_s, request_class)
    if timings.tpot_s is not None:
        metrics.answer_finished(timings.tpot_s, request_class)
    metrics.queue_left("prompt", timings.prompt_queue_s)
    metrics.queue_left("generation", timings.generation_queue_s)
    if timings.num_bytes_moved:
        metrics.kv_moved(timings.transfer_s, timings.num_bytes_moved, timings.transport)
    if timings.push_s > 0:
        metrics.kv_pushed(timings.num_bytes_pushed / timings.push_s, timings.transport)
    for _ in range(timings.num_preemptions):
        metrics.sequence_preempted()
    for _ in range(timings.num_migrations):
        metrics.sequence_migrated()


def record_failed(metrics: Metrics, failed: EmitFailed, request_class: str) -> None:
    """A whole request ended with an error."""
    by_caller = isinstance(failed.error, RequestCancelled | DeadlineExceeded | ReaderTooSlow)
    metrics.request_ended("cancelled" if by_caller else "failed", request_class, 0)


def record_pass_times(metrics: Metrics, worker: WorkerView | None) -> None:
    """A worker has told how far its model of its passes is off."""
    if worker is not None and worker.pass_time_error is not None:
        error = worker.pass_time_error
        metrics.passes_timed(worker.hello.role, error.median, error.p90)
