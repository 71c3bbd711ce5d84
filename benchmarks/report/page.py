"""The page: which chapter a file becomes, and everything in its order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from benchmarks.report.ablation_chapter import ablation_chapter
from benchmarks.report.cost_chapters import (
    decision_cost,
    live_run,
    simulator_replays,
    simulator_speed,
)
from benchmarks.report.fields import Field, Results
from benchmarks.report.kv_chapters import (
    gpu,
    kv_overlap,
    kv_overlap_live,
    kv_push,
    kv_push_network,
)
from benchmarks.report.markup import Chapter, code, facts, reasons, targets
from benchmarks.report.prose import Section, sections_of, table
from benchmarks.report.scheduling_chapter import other_goals, scheduling_chapter
from benchmarks.report.server_chapters import end_to_end, prompt_flow, router
from benchmarks.report.style import style

Maker = Callable[[Results, Sequence[Section]], Chapter]
_SCHEDULING = "scheduling.report"
# By the benchmark that wrote the file, in the order of the page.
MAKER_BY_MODULE: Mapping[str, Maker] = {
    _SCHEDULING: scheduling_chapter,
    "scheduling.ablation_report": ablation_chapter,
    "decision_cost": decision_cost,
    "simulator_speed": simulator_speed,
    "simulator_replays": simulator_replays,
    "live_against_simulator": live_run,
    "end_to_end": end_to_end,
    "router": router,
    "prompt_flow": prompt_flow,
    "kv_push": kv_push,
    "kv_push_network": kv_push_network,
    "kv_overlap": kv_overlap,
    "kv_overlap_live": kv_overlap_live,
    "gpu": gpu,
}
_LEAD = (
    "Every figure says which file it is from, by which command, when and on which machine; the "
    "reasons are those of the page of results beside the files. Figures of policies are simulated "
    "for the hardware that they name. Colours follow the screen, light or dark."
)


def page_of(files: Sequence[Results], text: str) -> str:
    """HTML that loads nothing and runs no script; `text` is the page of results, "" without.

    The same files and text give the same bytes. Raises: ResultsUnreadable.
    """
    return "\n".join(_lines(files, _chapters(files, sections_of(text)))) + "\n"


def _chapters(files: Sequence[Results], sections: Sequence[Section]) -> list[Chapter]:
    order = list(MAKER_BY_MODULE)
    known = [one for one in files if one.module in MAKER_BY_MODULE]
    known.sort(key=lambda one: (order.index(one.module), not _is_main(one), one.name))
    left = list(sections)
    chapters = []
    for one in known:
        mine = [section for section in left if one.name in section.files]
        left = [section for section in left if one.name not in section.files]
        chapters.append(MAKER_BY_MODULE[one.module](one, mine))
    goals = other_goals([one for one in known if one.module == _SCHEDULING])
    chapters += [goals] if goals is not None else []
    chapters += [_unknown(one) for one in files if one.module not in MAKER_BY_MODULE]
    rest = reasons(left)
    if rest:
        chapters.append(Chapter("What else the text says", "text", (), (rest,)))
    return chapters


def _is_main(results: Results) -> bool:
    """The file that has its benchmark's own name comes first."""
    return results.name == f"{results.module.partition('.')[0]}.json"


def _unknown(results: Results) -> Chapter:
    """No chapter is made of such a file: what is in it, so that it is not overlooked."""
    told = "No figure is made of this benchmark's results; these are its fields."
    rows = [[code(name), escape(_about(one))] for name, one in results.content.items()]
    parts = (
        facts(results),
        f"<p>{told}</p>",
        table(["field", "what it holds"], rows),
        targets(results.outcomes),
    )
    return Chapter(f"Other results: {results.name}", results.anchor, (results.name,), parts)


def _about(one: Field) -> str:
    if isinstance(one.value, dict):
        names = list(one.value)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"{len(names)} fields: {', '.join(names[:8])}{more}"
    if isinstance(one.value, list):
        return f"a list of {len(one.value)}"
    shown = str(one.value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _lines(files: Sequence[Results], chapters: Sequence[Chapter]) -> Iterator[str]:
    title = "Tandem: what was measured"
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{style()}</style></head><body>"
    yield f'<h1>{title}</h1><p class="lead">{escape(_LEAD)}</p>'
    yield "<nav><ul>"
    for chapter in chapters:
        yield f'<li><a href="#{chapter.anchor}">{escape(chapter.title)}</a></li>'
    yield "</ul></nav><h2>Files</h2>"
    yield _files(files)
    for chapter in chapters:
        yield f'<section id="{chapter.anchor}"><h2>{escape(chapter.title)}</h2>'
        yield from chapter.parts
        yield "</section>"
    yield "</body></html>"


def _files(files: Sequence[Results]) -> str:
    rows = []
    for one in files:
        met = sum(outcome.is_met for outcome in one.outcomes)
        rows.append(
            [
                f'<a href="#{one.anchor}">{escape(one.name)}</a>',
                code(one.command),
                escape(one.date),
                escape(one.machine) + (", <strong>quick</strong>" if one.is_quick else ""),
                f"{met} of {len(one.outcomes)}" if one.outcomes else "-",
            ]
        )
    return table(["file", "command", "date", "machine", "targets met"], rows)
