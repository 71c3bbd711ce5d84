"""The rounds of a comparison as tables, ratios and targets.

    python -m benchmarks.end_to_end.report FILE.json...

prints those of files that were written with --out, as Markdown.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.end_to_end.measure import Figures
from benchmarks.record import Target, spread

OURS, SINGLE, PAIR_RIGHT = ("tandem", "tandem-mixed"), "vllm", "vllm-pd-threads-right"
# Of the single server's tokens/s, of the pair's, and of the pair's p99 TTFT.
LEAST_BESIDE_SINGLE, LEAST_BESIDE_PAIR, MOST_TTFT_BESIDE_PAIR = 1.0, 1.5, 0.5

_COLUMNS: tuple[tuple[str, Callable[[Figures], float]], ...] = (
    ("tokens/s", lambda f: f.tokens_per_s),
    ("TTFT p50", lambda f: f.ttft_p50),
    ("TTFT p99", lambda f: f.ttft_p99),
    ("ITL p50", lambda f: f.itl_p50),
    ("ITL p99", lambda f: f.itl_p99),
)


def table(
    rounds: Sequence[Sequence[Figures]], decode_floor_ms: float, is_markdown: bool = False
) -> str:
    """One row a server and number of clients: median (lowest-highest) over the rounds."""
    everything = [figures for one in rounds for figures in one]
    head = ["server", "clients", *(name for name, _ in _COLUMNS), "tok/msg", "ITL p50/floor"]
    rows = [head]
    for num_clients in sorted({f.num_clients for f in everything}):
        for server in dict.fromkeys(f.server for f in everything):
            same = [f for f in everything if (f.server, f.num_clients) == (server, num_clients)]
            if same:
                cells = [spread([of(f) for f in same]) for _, of in _COLUMNS]
                per_message = statistics.median(f.tokens_per_message for f in same)
                # Of a token, as the floor is; a message may hold several.
                of_floor = [f.itl_p50 / f.tokens_per_message / decode_floor_ms for f in same]
                last = [f"{per_message:.2f}", spread(of_floor, 2)]
                rows.append([server, str(num_clients), *cells, *last])
    return (_markdown if is_markdown else _aligned)(rows)


def ratios(rounds: Sequence[Sequence[Figures]], ours: str, is_markdown: bool = False) -> str:
    """Our tokens/s and TTFT p99 over each peer's of the same round: median (lowest-highest), and
    what becomes of the targets where the peer has some."""
    rows = [[f"{ours} beside", "clients", "tokens/s ratio", "TTFT p99 ratio", "targets"]]
    for peer, num_clients, speed, wait in _compared(rounds, ours):
        verdicts = [
            f"{target.what} {'met' if target.is_met else 'MISSED'}"
            for target in _targets_beside(peer, speed, wait)
        ]
        cells = [spread(speed, 2), spread(wait, 2), ", ".join(verdicts)]
        rows.append([peer, str(num_clients), *cells])
    return (_markdown if is_markdown else _aligned)(rows)


def targets(rounds: Sequence[Sequence[Figures]], ours: str) -> list[Target]:
    """One for each number of clients and each figure that is to stand beside a peer's."""
    return [
        Target(
            f"{ours}, {num_clients} clients, beside {peer}, {one.what}",
            one.values,
            one.bound,
            one.is_limit,
        )
        for peer, num_clients, speed, wait in _compared(rounds, ours)
        for one in _targets_beside(peer, speed, wait)
    ]


def _targets_beside(peer: str, speed: Sequence[float], wait: Sequence[float]) -> list[Target]:
    if peer == SINGLE:
        what = f"tokens/s >= {LEAST_BESIDE_SINGLE:g}"
        return [Target(what, tuple(speed), LEAST_BESIDE_SINGLE)]
    if peer == PAIR_RIGHT:
        return [
            Target(f"tokens/s >= {LEAST_BESIDE_PAIR:g}", tuple(speed), LEAST_BESIDE_PAIR),
            Target(
                f"TTFT p99 <= {MOST_TTFT_BESIDE_PAIR:g}",
                tuple(wait),
                MOST_TTFT_BESIDE_PAIR,
                is_limit=True,
            ),
        ]
    return []


def _compared(
    rounds: Sequence[Sequence[Figures]], ours: str
) -> Iterator[tuple[str, int, list[float], list[float]]]:
    peers = dict.fromkeys(f.server for one in rounds for f in one if f.server not in OURS)
    for peer in peers:
        for num_clients in sorted({f.num_clients for one in rounds for f in one}):
            speed, wait = [], []
            for one in rounds:
                mine, theirs = _find(one, ours, num_clients), _find(one, peer, num_clients)
                if mine is not None and theirs is not None:
                    speed.append(mine.tokens_per_s / theirs.tokens_per_s)
                    wait.append(mine.ttft_p99 / theirs.ttft_p99)
            if speed:
                yield peer, num_clients, speed, wait


def _find(figures: Iterable[Figures], server: str, num_clients: int) -> Figures | None:
    return next((f for f in figures if (f.server, f.num_clients) == (server, num_clients)), None)


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


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def ours_compared(rounds: Sequence[Sequence[Figures]]) -> list[str]:
    """Those of ours that were measured, if anybody else was."""
    servers = {f.server for one in rounds for f in one}
    return [ours for ours in OURS if ours in servers] if servers - set(OURS) else []


def as_markdown(content: dict[str, Any]) -> str:
    """What one file of results holds."""
    rounds = [[Figures(**figures) for figures in one] for one in content["rounds"]]
    floor_ms = content["decode_floor_ms"]
    parts = [
        f"`{content['command']}`, {content['date']}, {content['machine']}; model "
        f"{content['model']}, {len(rounds)} rounds. Floor of a decode step, all cores reading: "
        f"{floor_ms:.1f} ms.",
        "Median (lowest-highest) over the rounds; milliseconds.",
        table(rounds, floor_ms, is_markdown=True),
    ]
    for ours in ours_compared(rounds):
        parts += ["Ratios within a round:", ratios(rounds, ours, is_markdown=True)]
    return "\n\n".join(parts)


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m benchmarks.end_to_end.report FILE.json...")
    for name in sys.argv[1:]:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        print(f"### {Path(name).name}\n\n{as_markdown(content)}\n")


if __name__ == "__main__":
    main()
