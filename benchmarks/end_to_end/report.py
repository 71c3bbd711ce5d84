"""The rounds of a comparison as tables and ratios."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.end_to_end.measure import Figures

_COLUMNS: tuple[tuple[str, Callable[[Figures], float]], ...] = (
    ("tokens/s", lambda f: f.tokens_per_s),
    ("TTFT p50", lambda f: f.ttft_p50),
    ("TTFT p99", lambda f: f.ttft_p99),
    ("ITL p50", lambda f: f.itl_p50),
    ("ITL p99", lambda f: f.itl_p99),
)


def table(rounds: Sequence[Sequence[Figures]]) -> str:
    """One row a server and number of clients: median (lowest-highest) over the rounds."""
    everything = [figures for one in rounds for figures in one]
    head = ["server", "clients", *(name for name, _ in _COLUMNS), "tok/msg"]
    rows = [head]
    for num_clients in sorted({f.num_clients for f in everything}):
        for server in dict.fromkeys(f.server for f in everything):
            same = [f for f in everything if (f.server, f.num_clients) == (server, num_clients)]
            if same:
                cells = [_spread([of(f) for f in same]) for _, of in _COLUMNS]
                per_message = statistics.median(f.tokens_per_message for f in same)
                rows.append([server, str(num_clients), *cells, f"{per_message:.2f}"])
    return _aligned(rows)


def ratios(rounds: Sequence[Sequence[Figures]], ours: str) -> str:
    """Our tokens/s and TTFT p99 over each peer's of the same round: median (lowest-highest)."""
    rows = [["tandem beside", "clients", "tokens/s ratio", "TTFT p99 ratio"]]
    peers = dict.fromkeys(f.server for one in rounds for f in one if f.server != ours)
    for peer in peers:
        for num_clients in sorted({f.num_clients for one in rounds for f in one}):
            speed, wait = [], []
            for one in rounds:
                mine, theirs = _find(one, ours, num_clients), _find(one, peer, num_clients)
                if mine is not None and theirs is not None:
                    speed.append(mine.tokens_per_s / theirs.tokens_per_s)
                    wait.append(mine.ttft_p99 / theirs.ttft_p99)
            if speed:
                rows.append([peer, str(num_clients), _spread(speed, 2), _spread(wait, 2)])
    return _aligned(rows)


def _find(figures: Iterable[Figures], server: str, num_clients: int) -> Figures | None:
    return next((f for f in figures if (f.server, f.num_clients) == (server, num_clients)), None)


def _spread(values: Sequence[float], digits: int = 1) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
