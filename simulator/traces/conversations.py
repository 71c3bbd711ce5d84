"""Recorded conversations without absolute times (the coding assistant): closed workloads.

A conversation's first request is open; each later one waits for the answer to the one before and
then for the recorded idle time. Side calls (`branch`) take their place in that one order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simulator.traces.arrivals import poisson_arrivals
from simulator.traces.draft import Draft, Row
from simulator.traces.errors import FieldProblem, TraceRateMissing, TraceTooLarge
from simulator.traces.fields import (
    MAX_NAME_CHARS,
    MAX_TIME_S,
    checked_whole,
    json_id,
    json_list,
    json_number,
    json_output_tokens,
    json_prompt_tokens,
)
from simulator.traces.lines import TraceLines
from simulator.traces.options import ReadOptions
from simulator.traces.prefix_pieces import RunNames
from simulator.traces.workload import DEFAULT_TENANT

CONVERSATION_FIELDS = frozenset({"conversation", "turn", "t", "input_length", "hash_runs"})
_BLOCK_TOKENS = 64
# A conversation numbers its blocks in order, with few gaps: this is 250 million tokens of them.
_MAX_BLOCK_NUMBER = 2**22


@dataclass(slots=True)
class _Conversation:
    """Arrivals of its rows count from its first request."""

    names: RunNames
    first_t: float
    last_t: float
    last_turn: int
    num_unknown_pauses: int = 0
    rows: list[Row] = field(default_factory=list)


def read_conversations(
    source: TraceLines, objects: Iterator[dict[str, Any]], options: ReadOptions
) -> Draft:
    """All conversations, each begun at a time of its own; names of blocks differ between them.

    Raises: TraceRateMissing, TraceError, FieldProblem.
    """
    conversations: dict[int, _Conversation] = {}
    limits = options.limits
    num_rows = num_ids = 0
    for fields in objects:
        conversation = _conversation_of(fields, conversations)
        before = conversation.names.num_names
        row = _row(fields, conversation)
        conversation.rows.append(row)
        num_rows += 1
        # Names are kept once for the conversation and referred to by each of its rows.
        num_ids += len(row.prefix_ids) + conversation.names.num_names - before
        if num_rows > limits.max_requests or num_ids > limits.max_prefix_ids:
            raise TraceTooLarge(
                source.path,
                f"more than {limits.max_requests} requests or {limits.max_prefix_ids} blocks",
                "split the file by conversation",
            )
    return _started(source, list(conversations.values()), num_rows, options)


def _conversation_of(
    fields: dict[str, Any], conversations: dict[int, _Conversation]
) -> _Conversation:
    """The conversation of a line, once the line is known to stand in its place."""
    number, turn = json_id(fields, "conversation"), json_id(fields, "turn")
    t = json_number(fields, "t", MAX_TIME_S)
    found = conversations.get(number)
    if found is None:
        names = RunNames(len(conversations) * (_MAX_BLOCK_NUMBER + 1))
        found = conversations[number] = _Conversation(names, t, t, turn)
        return found
    if turn <= found.last_turn:
        raise FieldProblem(
            "turn", turn, f"more than {found.last_turn}, the turn before in conversation {number}"
        )
    if t < found.last_t:
        raise FieldProblem(
            "t", t, f"{found.last_t:g} or more, as in the turn before in conversation {number}"
        )
    found.last_turn, found.last_t = turn, t
    return found


def _row(fields: dict[str, Any], conversation: _Conversation) -> Row:
    num_prompt_tokens = json_prompt_tokens(fields, "input_length")
    ids = conversation.names.of_runs(_runs(fields, num_prompt_tokens))
    tenant = fields.get("model", DEFAULT_TENANT)
    if not isinstance(tenant, str) or len(tenant) > MAX_NAME_CHARS:
        raise FieldProblem("model", tenant, f"a text of at most {MAX_NAME_CHARS} characters")
    offset_s = conversation.last_t - conversation.first_t
    return Row(
        offset_s,
        num_prompt_tokens,
        json_output_tokens(fields, "output_length"),
        tenant or DEFAULT_TENANT,
        str(fields["conversation"]),
        ids,
        _BLOCK_TOKENS if ids else 0,
        _pause_s(fields, offset_s, conversation),
    )


def _pause_s(fields: dict[str, Any], offset_s: float, conversation: _Conversation) -> float | None:
    """None for the first request; all the time since the request before where none is recorded."""
    if not conversation.rows:
        return None
    if "think_s" in fields:
        return json_number(fields, "think_s", MAX_TIME_S)
    conversation.num_unknown_pauses += 1
    return offset_s - conversation.rows[-1].arrival_s


def _runs(fields: dict[str, Any], num_prompt_tokens: int) -> list[tuple[int, int]]:
    """The (first number, count) of each run of blocks."""
    max_blocks = num_prompt_tokens // _BLOCK_TOKENS
    runs: list[tuple[int, int]] = []
    num_blocks = 0
    for run in json_list(fields, "hash_runs", max(1, max_blocks)):
        if not isinstance(run, list) or len(run) != 2:
            raise FieldProblem("hash_runs", run, "pairs of a first block number and a count")
        count = checked_whole(run[1], "hash_runs", 0, max_blocks)
        first = checked_whole(run[0], "hash_runs", 0, _MAX_BLOCK_NUMBER - count)
        num_blocks += count
        runs.append((first, count))
    if num_blocks > max_blocks:
        raise FieldProblem(
            "hash_runs", runs, f"at most {max_blocks} blocks, as many as input_length has in full"
        )
    return runs


def _started(
    source: TraceLines, conversations: list[_Conversation], num_rows: int, options: ReadOptions
) -> Draft:
    """The conversations in the order of the file, begun by a Poisson process."""
    num = len(conversations)
    total_s = sum(conversation.last_t - conversation.first_t for conversation in conversations)
    if options.rate_rps is not None:
        starts_per_s = options.rate_rps * num / num_rows
    elif total_s > 0:
        # As many begin as end while `num` of them are under way.
        starts_per_s = num / (total_s / num)
    else:
        raise TraceRateMissing(source.path, "conversations of one request each")
    starts = poisson_arrivals(num, starts_per_s, options.random_for("conversations"))
    rows = [
        row._replace(arrival_s=start + row.arrival_s)
        for start, conversation in zip(starts, conversations, strict=True)
        for row in conversation.rows
    ]
    rows.sort(key=lambda row: row.arrival_s)
    draft = Draft(rows, is_recorded=False)
    draft.notes.append(
        f"{num} conversations were begun by a Poisson process, one in {1 / starts_per_s:.4g} s, "
        f"seed {options.seed}; later requests wait for the answer before and the recorded pause."
    )
    if num_unknown := sum(conversation.num_unknown_pauses for conversation in conversations):
        draft.notes.append(
            f"{num_unknown} requests have no recorded pause; all the time since the request before "
            "was taken."
        )
    return draft
