"""What a trace asks of a cluster: when requests arrive, how long they are, what they share."""

from dataclasses import dataclass

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request.

    Open requests (`after_previous_s` is None) arrive at `arrival_s`, whatever became of others.
    A closed one arrives `after_previous_s` after the answer to the request before it in its
    session is complete; its `arrival_s` only says when that would be if the answers took as long
    as in the recording, and orders it among the others.
    """

    arrival_s: float  # since the first request of the workload, >= 0
    num_prompt_tokens: int  # >= 1
    num_output_tokens: int  # >= 1
    tenant: str = DEFAULT_TENANT  # client, model: whatever the trace tells apart
    session: str = ""  # the conversation; "" where the trace knows none
    # Names of pieces of `prefix_block_tokens` tokens each, from the prompt's first token on. Equal
    # names mean equal prompts from the start up to the end of that piece. The last piece may be cut
    # off by the prompt's end; what lies behind the last piece is shared with nobody. () is unknown.
    prefix_ids: tuple[int, ...] = ()
    prefix_block_tokens: int = 0  # 0 where prefix_ids is empty
    after_previous_s: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one trace, at least one, sorted by arrival; the first arrives at 0.

    Within a session they keep their order: where the first is left out, so are those behind it.
    """

    name: str  # of the file, without its suffixes
    requests: tuple[TraceRequest, ...]
    # What was drawn, changed or left out while reading: one sentence each, for reports.
    notes: tuple[str, ...] = ()

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].arrival_s

    @property
    def mean_rps(self) -> float | None:
        """Requests over span, an estimate if closed; None where all arrive at once."""
        return len(self.requests) / self.span_s if self.span_s > 0 else None

    @property
    def is_closed(self) -> bool:
        """Some request waits for an answer to another one."""
        return any(request.after_previous_s is not None for request in self.requests)
