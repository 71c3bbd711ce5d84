"""Runs side by side as plain text: a row for each policy, the best of each column marked."""

from collections.abc import Sequence

from simulator.report.columns import COLUMNS, Group, Run, best, groups

BEST = "*"


def text_table(runs: Sequence[Run]) -> str:
    """A block of lines for each trace and rate; ends in a newline."""
    blocks = ["\n".join(_lines(group)) for group in groups(runs)]
    if any(BEST in block for block in blocks):
        blocks.append(f"{BEST} best of its table")
    return "\n\n".join(blocks) + "\n"


def _lines(group: Group) -> list[str]:
    width = max(len(name) for name in ("policy", *group.labels))
    rows = [name.ljust(width) for name in ("", "policy", *group.labels)]
    for column in COLUMNS:
        marked = best(group, column)
        # Flush right, with room for the mark behind.
        cells = [f"{word} " for word in column.heading]
        for number, run in enumerate(group.runs):
            cells.append(column.cell(run) + (BEST if number in marked else " "))
        column_width = max(len(cell) for cell in cells)
        pairs = zip(rows, cells, strict=True)
        rows = [f"{row} {cell.rjust(column_width)}" for row, cell in pairs]
    rows = [row.rstrip() for row in rows]
    rule = "-" * max(len(row) for row in rows)
    return [group.title, *rows[:2], rule, *rows[2:]]
