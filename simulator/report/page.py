"""One HTML file with everything: tables, plots, settings. It loads nothing and runs no script."""

import base64
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from simulator.metrics.summary import RunResult, summary
from simulator.report.canvas import HEIGHT_PX, WIDTH_PX
from simulator.report.columns import COLUMNS, Group, Run, best, groups
from simulator.report.palette import DARK, LIGHT, Palette
from simulator.report.plots import Picture, pictures
from simulator.report.whole_file import replace_file

_STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; color: var(--ink); background: var(--ground); }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption, dd { color: var(--faint); }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .3rem 0 1rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th { color: var(--faint); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; } td.best::after { content: " \\2605"; color: var(--mark); }
td:not(.best)::after { content: " \\2605"; visibility: hidden; }
table.settings td::after { content: none; }
table.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0; } figure img { width: 100%%; height: auto; display: block; }
"""


def report_page(results: Sequence[RunResult]) -> str:
    """The page; at least one run. Raises: PlotsUnavailable."""
    runs = [summary(result) for result in results]
    return page_text(runs, pictures(results, LIGHT), pictures(results, DARK))


def page_text(runs: Sequence[Run], light: Sequence[Picture], dark: Sequence[Picture]) -> str:
    """The page with these pictures, each once for light and once for dark screens."""
    return "\n".join(_parts(runs, light, dark)) + "\n"


def write_page(path: Path, results: Sequence[RunResult]) -> None:
    """Replace the file, or leave it as it was. Raises: PlotsUnavailable, OSError."""
    text = report_page(results)
    replace_file(path, text)


def _parts(runs: Sequence[Run], light: Sequence[Picture], dark: Sequence[Picture]) -> Iterator[str]:
    traces = ", ".join(dict.fromkeys(str(run["trace"]) for run in runs))
    title = escape(f"Simulation of {traces}")
    style = _STYLE % {"light": _variables(LIGHT), "dark": _variables(DARK)}
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{style}</style></head><body>"
    yield f"<h1>{title}</h1>"
    version = escape(str(runs[0]["version"]))
    yield f"<p>Tandem {version}: virtual time over the product's own code.</p>"
    for group in groups(runs):
        yield from _table(group)
    yield "<h2>Plots</h2>"
    for day, night in zip(light, dark, strict=True):
        yield from _figure(day, night)
    yield "<h2>Settings</h2>"
    yield from _settings(runs)
    yield "<h2>What the columns say</h2><dl>"
    for column in COLUMNS:
        yield f"<dt>{escape(' '.join(column.heading))}</dt><dd>{escape(column.meaning)}</dd>"
    yield "</dl></body></html>"


def _variables(palette: Palette) -> str:
    named = {
        "ground": palette.ground,
        "ink": palette.ink,
        "faint": palette.faint_ink,
        "grid": palette.grid,
        "mark": palette.lines[1],
    }
    return " ".join(f"--{name}: {color};" for name, color in named.items())


def _table(group: Group) -> Iterator[str]:
    yield f'<h2>{escape(group.title)}</h2><div class="scroll"><table><thead><tr><th>policy</th>'
    for column in COLUMNS:
        heading = "<br>".join(escape(word) for word in column.heading)
        yield f'<th title="{escape(column.meaning)}">{heading}</th>'
    yield "</tr></thead><tbody>"
    marked = [best(group, column) for column in COLUMNS]
    for number, (name, run) in enumerate(zip(group.labels, group.runs, strict=True)):
        cells = [f"<td>{escape(name)}</td>"]
        for column, winners in zip(COLUMNS, marked, strict=True):
            kind = ' class="best"' if number in winners else ""
            cells.append(f"<td{kind}>{escape(column.cell(run))}</td>")
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _figure(day: Picture, night: Picture) -> Iterator[str]:
    yield "<figure><picture>"
    yield f'<source srcset="{_inline(night)}" media="(prefers-color-scheme: dark)">'
    size = f'width="{WIDTH_PX}" height="{HEIGHT_PX}"'
    yield f'<img src="{_inline(day)}" {size} alt="{escape(day.caption)}">'
    yield f"</picture><figcaption>{escape(day.caption)}</figcaption></figure>"


def _inline(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode('ascii')}"


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    """What all runs share is said once."""
    names = ["trace", "cluster", "hardware", "model", "gpus", "seed", "rate_scale", "warmup_s"]
    names += ["slo", "slo_source", "requests", "settings"]
    yield '<div class="scroll"><table class="settings"><tbody>'
    for name in names:
        values = dict.fromkeys(_shown(run[name]) for run in runs)
        if values.keys() != {""}:
            yield f"<tr><td>{escape(name)}</td><td>{escape(', '.join(values))}</td></tr>"
    yield "</tbody></table></div>"


def _shown(value: object) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False) if value else ""
