"""Token ids for prompts of which a trace only says how long they are and what they share."""

from simulator.traces.workload import TraceRequest, Workload

# Token ids are below 2**32: the lower half is for what may be shared, the upper for what is not.
_FIRST_OWN_ID = 2**31
# Of the prompts without names that are kept for others of their length: 128 MB.
_MAX_KEPT_TOKENS = 16_000_000


def own_token_id(number: int) -> int:
    """A token that stands in no other request than that one."""
    return _FIRST_OWN_ID + number % _FIRST_OWN_ID


def has_prefixes(workload: Workload) -> bool:
    """Whether the trace says what prompts share."""
    return any(request.prefix_ids for request in workload.requests)


class PromptTokens:
    """Makes prompts so that the product's own caching finds what the trace says is there.

    With `is_shared`, equal names of pieces become equal tokens, and everything behind the last
    named piece is the request's own. Without it a prompt is only as long as it should be, and
    prompts of one length are one object.
    """

    def __init__(self, workload: Workload, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._by_length: dict[int, tuple[int, ...]] = {}
        self._num_kept = 0
        names = (max(r.prefix_ids) for r in workload.requests if r.prefix_ids)
        # Names that are no token ids are numbered as they come.
        self._id_by_name: dict[int, int] | None = None
        if is_shared and max(names, default=0) >= _FIRST_OWN_ID:
            self._id_by_name = {}

    def of(self, number: int, request: TraceRequest) -> tuple[int, ...]:
        """The prompt of the request with that number."""
        if not self.is_shared:
            return self._nameless(request.num_prompt_tokens)
        tokens: list[int] = []
        for name in request.prefix_ids:
            tokens += (self._token_id(name),) * request.prefix_block_tokens
        del tokens[request.num_prompt_tokens :]
        tokens += (own_token_id(number),) * (request.num_prompt_tokens - len(tokens))
        return tuple(tokens)

    def _token_id(self, name: int) -> int:
        if self._id_by_name is None:
            return name
        return self._id_by_name.setdefault(name, len(self._id_by_name))

    def _nameless(self, num_tokens: int) -> tuple[int, ...]:
        known = self._by_length.get(num_tokens)
        if known is None:
            if self._num_kept > _MAX_KEPT_TOKENS:
                self._by_length.clear()
                self._num_kept = 0
            known = self._by_length[num_tokens] = (0,) * num_tokens
            self._num_kept += num_tokens
        return known
