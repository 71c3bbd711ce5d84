"""Chapters of `benchmarks.scheduling`: who serves how much, beside the papers, pair by pair."""

import math
from collections.abc import Sequence
from html import escape

from benchmarks.report.charts import Bar, Mark, Panel, bar_panels
from benchmarks.report.fields import Results
from benchmarks.report.markup import Chapter, facts, figure, reason_anchor, reasons, side_by_side
from benchmarks.report.prose import Section, as_html, inline, table
from benchmarks.report.scheduling_cells import CellGroup, cell_groups
from benchmarks.report.scheduling_pairs import OURS, goodput_bars, pair_details, row_of
from benchmarks.scheduling.papers import HEADLINES, Headline
from benchmarks.scheduling.ratios import Ratios, has_no_limit, rate_per_gpu, ratios
from benchmarks.scheduling.report import beside_baselines, where_it_loses

_LEAD = (
    "Goodput is the highest rate at which 90 % of the requests meet their goals. A paler bar and + "
    "say that no rate that was tried failed: it may be more. Thin lines are the default and the "
    "oracle, which knows the lengths of all answers."
)


def scheduling_chapter(results: Results, sections: Sequence[Section]) -> Chapter:
    """Of one file. Raises: ResultsUnreadable."""
    parts = [facts(results), f'<p class="lead">{escape(_LEAD)}</p>']
    found = cell_groups(results)
    for group in found:
        parts += _group_parts(group, sections, is_alone=len(found) == 1)
    parts.append(reasons(sections))
    names = ", ".join(dict.fromkeys(pair[1] for group in found for pair in group.pairs))
    title = f"Policies on recorded loads: {results.name} ({names})"
    return Chapter(title, results.anchor, (results.name,), tuple(parts))


def _group_parts(group: CellGroup, sections: Sequence[Section], *, is_alone: bool) -> list[str]:
    parts = [] if is_alone else [f"<h3>{escape(group.title)}</h3>"]
    if is_alone and group.settings.keys() - {"seed", "quick"}:
        parts.append(f"<p>Measured with {escape(group.title)}.</p>")
    parts.append(_together(group))
    if OURS in group.policies:
        parts.append(as_html(beside_baselines(group.entries)))
        parts.append(as_html(where_it_loses(group.entries)))
        parts.append(_beside_papers(group, sections))
    for hardware in dict.fromkeys(pair[1] for pair in group.pairs):
        pairs = [pair for pair in group.pairs if pair[1] == hardware]
        parts.append(f"<h3>{escape(hardware)}: goodput per GPU</h3>")
        parts.append(side_by_side([goodput_bars(group, *pair) for pair in pairs]))
        parts += [pair_details(group, *pair) for pair in pairs]
    return parts


def _together(group: CellGroup) -> str:
    """Everybody's goodput over the default's, hardware by hardware."""
    if OURS not in group.policies:
        return ""
    panels = []
    for hardware in dict.fromkeys(pair[1] for pair in group.pairs):
        entries = [entry for entry in group.entries if entry["hardware"] == hardware]
        bars: list[Bar | None] = []
        for policy in group.policies:
            found = ratios(entries, policy, OURS, rate_per_gpu)
            mean = found.geometric_mean
            text = "" if mean is None else f"{mean:.2f} ({len(found.finite)})"
            bars.append(None if mean is None else Bar(mean, text))
        panels.append(Panel(hardware, bars, [Mark(1.0, OURS)]))
    drawing = bar_panels([row_of(name) for name in group.policies], panels, "goodput, together")
    note = (
        "Geometric mean over traces, in brackets over how many: those in which both serve and a "
        "rate that was tried failed."
    )
    return figure(drawing, "Goodput over the default's", group.results.source, note)


def _beside_papers(group: CellGroup, sections: Sequence[Section]) -> str:
    """The papers' figures; "" where none of their policies was measured."""
    rows = []
    for one in HEADLINES:
        own = ratios(group.entries, one.policy, one.base, one.figure)
        ours = ratios(group.entries, OURS, one.base, one.figure)
        if own.finite or ours.finite:
            row = [inline(one.text), f"ratio to <code>{one.base}</code>: {_published(one)}"]
            row += [f"<code>{one.policy}</code> {_span(own)}", _reached(one, own)]
            row += [_span(ours), _reached(one, ours), _why(one, own, sections)]
            rows.append(row)
    if not rows:
        return ""
    head = ["published", "asked", "own policy: mean (range)", "reached", "default", "reached", ""]
    told = (
        "Reached: in so many pairs the ratio is at least as good as the "
        "published one, which is the best of a paper where it says up to."
    )
    return f'<h3>Beside the papers</h3><p class="lead">{escape(told)}</p>{table(head, rows)}'


def _published(one: Headline) -> str:
    return f"{'at most' if one.is_less_better else 'at least'} {one.ratio:.2f}"


def _span(found: Ratios) -> str:
    if found.geometric_mean is None:
        return "-"
    return f"{found.geometric_mean:.2f} ({min(found.finite):.2f} to {max(found.finite):.2f})"


def _reached(one: Headline, found: Ratios) -> str:
    known = [cell.ratio for cell in found.cells if not math.isnan(cell.ratio)]
    if not known:
        return "-"
    num_reached = sum(map(one.is_reached, known))
    told = f"in {num_reached} of {len(known)}"
    return told if num_reached else f"<strong>lower</strong>, {told}"


def _why(one: Headline, own: Ratios, sections: Sequence[Section]) -> str:
    """Where ours is lower, the paragraphs that speak of the paper."""
    mean = own.geometric_mean
    if mean is None or one.is_reached(mean):
        return ""
    places = [
        reason_anchor(section, number)
        for section in sections
        for number, paragraph in enumerate(section.reasons, start=1)
        if one.paper in paragraph
    ]
    links = [f'<a href="#{place}">why {number}</a>' for number, place in enumerate(places, 1)]
    return f"mean is lower: {', '.join(links)}" if links else "mean is lower; no reason is written"


def other_goals(files: Sequence[Results]) -> Chapter | None:
    """Pairs that were measured under several goals, else alike; None where there are none."""
    groups = [group for one in files for group in cell_groups(one)]
    rows = []
    for number, group in enumerate(groups):
        for other in groups[number + 1 :]:
            if _without_goals(group) == _without_goals(other):
                rows += _two_goals(group, other)
    if not rows:
        return None
    head = ["trace, hardware", "goals", "default", "over fcfs", "over oracle"]
    told = "Goodput per GPU of the same pairs where only the goals differ. + as above."
    names = tuple(one.name for one in files)
    parts = (f'<p class="lead">{escape(told)}</p>', table(head, rows))
    return Chapter("The same loads under other goals", "other-goals", names, parts)


def _without_goals(group: CellGroup) -> dict[str, object]:
    return {name: value for name, value in group.settings.items() if name != "slo"}


def _two_goals(group: CellGroup, other: CellGroup) -> list[list[str]]:
    rows = []
    for pair in group.pairs:
        if pair not in other.pairs:
            continue
        for one in (group, other):
            entries = one.of_pair(*pair)
            goodput = entries[OURS]["goodput"] if OURS in entries else None
            if goodput is None:
                continue
            mark = " +" if has_no_limit(entries[OURS]) else ""
            goals = str(entries[OURS].get("slo", ""))
            asked = one.settings.get("slo")
            over = [
                ratios(list(entries.values()), OURS, base, rate_per_gpu).geometric_mean
                for base in ("fcfs", "oracle")
            ]
            rows.append(
                [
                    escape(", ".join(pair)),
                    escape(goals if asked is None else f"{goals} (--slo {asked})"),
                    f"{goodput['rps_per_gpu']:.3g}{mark}",
                    *("-" if ratio is None else f"{ratio:.2f}" for ratio in over),
                ]
            )
    return rows
