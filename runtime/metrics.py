"""Every metric of Tandem: its name, unit and labels, and one typed way to record it.

Labels have few values: never a request, tenant or session.
"""

from typing import Literal

from opentelemetry.metrics import Meter

Outcome = Literal["finished", "failed", "cancelled", "refused"]
Queue = Literal["prompt", "generation"]

# From one decode iteration of a small model to the TTFT of a batch request that waits its turn.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
# From a slow network to shared memory on a large machine.
_BYTES_PER_SECOND = (1e6, 1e7, 3e7, 1e8, 3e8, 1e9, 2e9, 3e9, 5e9, 1e10, 2e10, 5e10, 1e11)
# Errors as shares of the truth: from a model that fits well to a guess.
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)


class Metrics:
    """The instruments of one process. Recording takes microseconds: per request, not per token."""

    def __init__(self, meter: Meter) -> None:
        self._time_to_first_token = meter.create_histogram(
            "tandem_time_to_first_token_seconds",
            unit="s",
            description="From the arrival of a request to its first output token",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._time_per_output_token = meter.create_histogram(
            "tandem_time_per_output_token_seconds",
            unit="s",
            description="Mean time between the output tokens of one answer after the first",
            explicit_bucket_boundaries_advisory=_SHORT_SECONDS,
        )
        self._queue_time = meter.create_histogram(
            "tandem_request_queue_time_seconds",
            unit="s",
            description="Time that a task waited in a queue of the router",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._kv_transfer = meter.create_histogram(
            "tandem_kv_transfer_seconds",
            unit="s",
            description="From the end of prefill to the last KV block in the decode worker",
            explicit_bucket_boundaries_advisory=_SHORT_SECONDS,
        )
        self._kv_transfer_bytes = meter.create_counter(
            "tandem_kv_transfer_bytes_total", unit="By", description="KV moved between workers"
        )
        self._kv_push_rate = meter.create_histogram(
            "tandem_kv_push_bytes_per_second",
            unit="By/s",
            description="Speed at which a prefill worker copied the KV of one answer",
            explicit_bucket_boundaries_advisory=_BYTES_PER_SECOND,
        )
        self._requests = meter.create_counter(
            "tandem_requests_total", description="Requests that ended, by how they ended"
        )
        self._output_tokens = meter.create_counter(
            "tandem_output_tokens_total", description="Tokens of ended answers"
        )
        self._prefix_queries = meter.create_counter(
            "tandem_prefix_cache_queries_total", description="Prompt tokens of ended answers"
        )
        self._prefix_hits = meter.create_counter(
            "tandem_prefix_cache_hits_total",
            description="Prompt tokens of ended answers whose KV existed already",
        )
        self._preemptions = meter.create_counter(
            "tandem_preemptions_total",
            description="Sequences that gave their blocks back unfinished",
        )
        self._migrations = meter.create_counter(
            "tandem_migrations_total", description="Sequences that went on at another worker"
        )
        self._length_error = meter.create_histogram(
            "tandem_length_prediction_error_ratio",
            unit="1",
            description="Tokens between the predicted mean and an answer, as a share of the answer",
            explicit_bucket_boundaries_advisory=_RATIOS,
        )
        self._length_bounds = meter.create_counter(
            "tandem_length_predictions_total",
            description="Ended answers, by whether they were no longer than predicted as a bound",
        )
        self._pass_time_error = meter.create_histogram(
            "tandem_pass_time_error_ratio",
            unit="1",
            description="Relative error of a worker's model of its own passes over its last passes",
            explicit_bucket_boundaries_advisory=_RATIOS,
        )

    def prefix_looked_up(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        """One answer's prompt, and what of it no worker had to compute."""
        self._prefix_queries.add(num_prompt_tokens)
        self._prefix_hits.add(num_cached_tokens)

    def request_ended(self, outcome: Outcome, request_class: str, num_output_tokens: int) -> None:
        """Count a request once, at its end."""
        labels = {"outcome": outcome, "request_class": request_class}
        self._requests.add(1, labels)
        self._output_tokens.add(num_output_tokens, {"request_class": request_class})

    def first_token_emitted(self, ttft_s: float, request_class: str) -> None:
        """TTFT of one answer."""
        self._time_to_first_token.record(ttft_s, {"request_class": request_class})

    def answer_finished(self, tpot_s: float, request_class: str) -> None:
        """TPOT of one answer of at least two tokens."""
        self._time_per_output_token.record(tpot_s, {"request_class": request_class})

    def queue_left(self, queue: Queue, waited_s: float) -> None:
        """A task was dispatched, after this time in the queue."""
        self._queue_time.record(waited_s, {"queue": queue})

    def kv_moved(self, transfer_s: float, num_bytes: int, transport: str) -> None:
        """The KV of one task arrived."""
        labels = {"transport": transport}
        self._kv_transfer.record(transfer_s, labels)
        self._kv_transfer_bytes.add(num_bytes, labels)

    def kv_pushed(self, bytes_per_s: float, transport: str) -> None:
        """The KV of one task was copied at this speed, by the prefill worker's own time."""
        self._kv_push_rate.record(bytes_per_s, {"transport": transport})

    def sequence_preempted(self) -> None:
        """A worker took the blocks of a running sequence back."""
        self._preemptions.add(1)

    def sequence_migrated(self) -> None:
        """A sequence goes on elsewhere because its worker was lost or failed."""
        self._migrations.add(1)

    def length_predicted(self, mean: int, bound: int, num_output_tokens: int) -> None:
        """One answer of at least one token has ended, for which this had been predicted."""
        self._length_error.record(abs(num_output_tokens - mean) / num_output_tokens)
        self._length_bounds.add(1, {"within_bound": num_output_tokens <= bound})

    def passes_timed(self, role: str, median_error: float, p90_error: float) -> None:
        """A worker has fitted its model anew; its errors so far, as shares of the measured time."""
        self._pass_time_error.record(median_error, {"role": role, "statistic": "median"})
        self._pass_time_error.record(p90_error, {"role": role, "statistic": "p90"})
