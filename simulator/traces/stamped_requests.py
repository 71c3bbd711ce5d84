"""JSON lines with a timestamp each, and names of what prompts begin with: Mooncake, RAGPulse."""

from collections.abc import Iterator
from typing import Any

from simulator.traces.arrivals import bucket_width, spread_in_buckets
from simulator.traces.draft import Draft, Row, taken
from simulator.traces.errors import FieldProblem
from simulator.traces.fields import (
    MAX_ID,
    MAX_TIME_S,
    MAX_TOKENS,
    checked_whole,
    json_id,
    json_list,
    json_number,
    json_output_tokens,
    json_prompt_tokens,
)
from simulator.traces.lines import TraceLines
from simulator.traces.options import ReadOptions
from simulator.traces.prefix_pieces import PieceNames

STAMPED_FIELDS = frozenset({"timestamp", "input_length", "output_length"})
CONTENT_BLOCK_FIELDS = STAMPED_FIELDS | {"hash_ids", "block_tokens"}
_MOONCAKE_BLOCK_TOKENS = 512
_MS_PER_S = 1000.0


def read_prefix_blocks(
    source: TraceLines, objects: Iterator[dict[str, Any]], options: ReadOptions
) -> Draft:
    """Mooncake: an id names 512 tokens and all before them; the last may be partial.

    Raises: TraceError, FieldProblem.
    """
    rows = (_mooncake_row(fields) for fields in objects)
    return _spread(Draft(taken(source.path, rows, options), is_recorded=True), options)


def read_content_blocks(
    source: TraceLines, objects: Iterator[dict[str, Any]], options: ReadOptions
) -> Draft:
    """RAGPulse: an id names a block's content, wherever it stands; blocks have any size.

    Raises: TraceError, FieldProblem.
    """
    pieces = PieceNames(options.prefix_block_tokens)
    rows = (_rag_row(fields, pieces, options.prefix_block_tokens) for fields in objects)
    return _spread(Draft(taken(source.path, rows, options), is_recorded=True), options)


def _mooncake_row(fields: dict[str, Any]) -> Row:
    num_prompt_tokens = json_prompt_tokens(fields, "input_length")
    ids: tuple[int, ...] = ()
    if "hash_ids" in fields:
        ids = _ids(fields, -(-num_prompt_tokens // _MOONCAKE_BLOCK_TOKENS))
    return Row(
        json_number(fields, "timestamp", MAX_TIME_S * _MS_PER_S) / _MS_PER_S,
        num_prompt_tokens,
        json_output_tokens(fields, "output_length"),
        prefix_ids=ids,
        prefix_block_tokens=_MOONCAKE_BLOCK_TOKENS if ids else 0,
    )


def _rag_row(fields: dict[str, Any], pieces: PieceNames, piece_tokens: int) -> Row:
    num_prompt_tokens = json_prompt_tokens(fields, "input_length")
    ids = _ids(fields, num_prompt_tokens)
    sizes = json_list(fields, "block_tokens", num_prompt_tokens)
    for size in sizes:
        checked_whole(size, "block_tokens", 1, MAX_TOKENS)
    if len(sizes) != len(ids):
        raise FieldProblem("block_tokens", sizes, f"{len(ids)} items, one for each of hash_ids")
    if sum(sizes) > num_prompt_tokens:
        raise FieldProblem(
            "block_tokens", sizes, f"a sum of at most {num_prompt_tokens}, the input_length"
        )
    names = pieces.of_blocks(ids, sizes)
    return Row(
        json_number(fields, "timestamp", MAX_TIME_S * _MS_PER_S) / _MS_PER_S,
        num_prompt_tokens,
        json_output_tokens(fields, "output_length"),
        session=str(json_id(fields, "conversation")) if "conversation" in fields else "",
        prefix_ids=names,
        prefix_block_tokens=piece_tokens if names else 0,
    )


def _ids(fields: dict[str, Any], max_items: int) -> tuple[int, ...]:
    ids = json_list(fields, "hash_ids", max_items)
    # A trace has millions: look at each only if something is wrong.
    if ids and not (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= MAX_ID):
        for block_id in ids:
            checked_whole(block_id, "hash_ids", 0, MAX_ID)
    return tuple(ids)


def _spread(draft: Draft, options: ReadOptions) -> Draft:
    """Undoes the rounding of a coarse clock, as far as that can be undone."""
    draft.sort()
    stamps = [row.arrival_s for row in draft.rows]
    width = bucket_width(stamps)
    if width is None:
        return draft
    spread = spread_in_buckets(stamps, width, options.random_for("buckets"))
    draft.rows = [
        row._replace(arrival_s=arrival) for row, arrival in zip(draft.rows, spread, strict=True)
    ]
    draft.notes.append(
        f"Timestamps are rounded to about {width:.3g} s; each request was moved to a random place "
        f"inside its step, seed {options.seed}."
    )
    return draft
