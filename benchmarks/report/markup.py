"""What chapters are made of: figures with their source, targets, facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.record import spread
from benchmarks.report.fields import Outcome, Results
from benchmarks.report.prose import Section, inline, table


@dataclass(frozen=True, slots=True)
class Chapter:
    """A part of the page, as HTML; `files` are those whose figures it shows."""

    title: str
    anchor: str
    files: tuple[str, ...]
    parts: tuple[str, ...]


def figure(drawing: str, title: str, source: str, note: str = "") -> str:
    """A drawing under its title, and where it comes from."""
    below = f"{escape(note)} " if note else ""
    return (
        f'<figure><h4>{escape(title)}</h4><div class="scroll">{drawing}</div>'
        f'<figcaption>{below}<span class="src">{escape(source)}</span></figcaption></figure>'
    )


def side_by_side(figures: Sequence[str]) -> str:
    """As many in a row as the screen holds."""
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def folded(summary: str, parts: Sequence[str]) -> str:
    """Opened by a click, without a script."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def facts(results: Results, more: str = "") -> str:
    """What a file says of itself."""
    load = results.load_1min
    busy = "" if load is None else f"; {load:g} processes wanted to run in the minute before"
    told = f"<code>{escape(results.command)}</code><br>{escape(results.date)}, "
    told += escape(f"{results.machine}{busy}")
    quick = "<br><strong>A quick look, not a measurement.</strong>" if results.is_quick else ""
    return f'<p class="facts">{escape(results.name)}: {told}{quick}{more}</p>'


def targets(outcomes: Sequence[Outcome]) -> str:
    """A table; "" where nothing was aimed at."""
    if not outcomes:
        return ""
    rows = [
        [
            escape(one.what),
            spread(one.values, _digits(one.values)),
            escape(one.target),
            "met" if one.is_met else "<strong>MISSED</strong>",
        ]
        for one in outcomes
    ]
    num_met = sum(one.is_met for one in outcomes)
    head = ["target", "median (lowest-highest)", "bound", ""]
    told = f"Targets: {num_met} of {len(outcomes)} met"
    return folded(told, [table(head, rows)])


def reasons(sections: Sequence[Section]) -> str:
    """What the text says of missed targets and losses; each paragraph has a place to point at."""
    parts = []
    for section in sections:
        for number, paragraph in enumerate(section.reasons, start=1):
            anchor = reason_anchor(section, number)
            text = inline(" ".join(paragraph.split()))
            parts.append(f'<p class="reason" id="{anchor}">{text}</p>')
    if not parts:
        return ""
    return f"<h3>Why, as the text says</h3>{''.join(parts)}"


def reason_anchor(section: Section, number: int) -> str:
    """Of a paragraph, counted from 1."""
    words = "".join(c if c.isalnum() else "-" for c in section.heading.lower())
    return f"why-{words}-{number}"


def code(text: str) -> str:
    """As typed."""
    return f"<code>{escape(text)}</code>"


def _digits(values: Sequence[float]) -> int:
    return 0 if min(map(abs, values)) >= 100 else 2 if max(map(abs, values)) >= 0.1 else 4


def ending(results: Results, sections: Sequence[Section]) -> list[str]:
    """What most chapters end with: targets, and what the text says."""
    return [targets(results.outcomes), reasons(sections)]


def chapter(title: str, results: Results, parts: Sequence[str]) -> Chapter:
    """Of one file; empty parts are left out."""
    whole = f"{title}: {results.name}"
    return Chapter(whole, results.anchor, (results.name,), tuple(filter(None, parts)))
