"""Plain tables that are no comparison of runs."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], num_left: int) -> str:
    """Rows of equal length below a ruled head; the first columns flush left, others right.

    Ends in a newline.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            # The last column holds remarks.
            cell.ljust(width) if number < num_left or number == last else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
