"""Where the time of each answer went and what moved for it, as a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from deploy.local.conversation import Outcome
from tandemserve import Timings

# Below it the table comes in two halves.
_WIDE_ENOUGH = 140
_WIDTH_WITHOUT_TERMINAL = 160


@dataclass(frozen=True, slots=True)
class Column:
    """A heading in one or two lines, and the cell of each answer."""

    heading: str
    cells: tuple[str, ...]
    is_number: bool = True


def columns_of(outcomes: Sequence[Outcome]) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """First the times in milliseconds, then what moved."""

    def cells(of: Callable[[Timings], str]) -> tuple[str, ...]:
        return tuple(
            "-" if outcome.finished is None else of(outcome.finished.timings)
            for outcome in outcomes
        )

    times = (
        Column("tokens\nin", tuple(_num_prompt_tokens(outcome) for outcome in outcomes)),
        Column("\nout", tuple(str(outcome.num_output_tokens) for outcome in outcomes)),
        Column("PT queue\nms", cells(lambda timings: _ms(timings.prompt_queue_ms))),
        Column("prefill\nms", cells(lambda timings: _ms(timings.prefill_ms))),
        Column("GT queue\nms", cells(lambda timings: _ms(timings.generation_queue_ms))),
        Column("transfer\nms", cells(lambda timings: _ms(timings.transfer_ms))),
        Column("decode\nms", cells(lambda timings: _ms(timings.decode_ms))),
        Column("TTFT\nms", cells(lambda timings: _ms(timings.ttft_ms))),
        Column("TPOT\nms", cells(lambda timings: _ms(timings.tpot_ms))),
    )
    moves = (
        Column("tokens\ncached", tuple(_num_cached(outcome) for outcome in outcomes)),
        Column("blocks\nmoved", cells(lambda timings: str(timings.num_blocks_moved))),
        Column("KiB\nmoved", cells(lambda timings: f"{timings.num_bytes_moved / 1024:.0f}")),
        Column("transport", cells(lambda timings: timings.transport or "-"), is_number=False),
        Column("binding", cells(_binding), is_number=False),
        Column("workers", cells(_workers), is_number=False),
    )
    return times, moves


def print_outcomes(outcomes: Sequence[Outcome], console: Console | None = None) -> None:
    """One table, or two where the terminal is too narrow for it."""
    if console is None:
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console = Console(markup=False, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    times, moves = columns_of(outcomes)
    parts = [(*times, *moves)] if console.width >= _WIDE_ENOUGH else [times, moves]
    for part in parts:
        console.print(_table(outcomes, part))


def _table(outcomes: Sequence[Outcome], columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    for column in columns:
        justify: JustifyMethod = "right" if column.is_number else "left"
        table.add_column(column.heading, justify=justify, no_wrap=True)
    for row, outcome in enumerate(outcomes):
        table.add_row(str(outcome.question.number), *(column.cells[row] for column in columns))
    return table


def _num_prompt_tokens(outcome: Outcome) -> str:
    return "-" if outcome.finished is None else str(outcome.finished.usage.num_prompt_tokens)


def _num_cached(outcome: Outcome) -> str:
    return "-" if outcome.finished is None else str(outcome.finished.usage.num_cached_tokens)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _binding(timings: Timings) -> str:
    return "early" if timings.early_binding else "late"


def _workers(timings: Timings) -> str:
    return " > ".join(name for name in (timings.prefill_worker, timings.decode_worker) if name)
