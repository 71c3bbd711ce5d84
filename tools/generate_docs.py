"""Writes the generated parts of docs/ from the code they describe. Run by `make docs`.

A part lies between two marker lines in a hand-written page:
`<!-- generated: NAME (make docs) -->` and `<!-- end of NAME -->`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from scheduling.lifecycle import TERMINAL, TRANSITIONS, Change, Phase

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_PART = re.compile(
    r"(?P<open><!-- generated: (?P<name>[a-z-]+) \(make docs\) -->\n)"
    r".*?"
    r"(?P<close><!-- end of (?P=name) -->)",
    re.DOTALL,
)


class UnknownPart(ValueError):
    """A page asks for a generated part that nobody writes."""

    def __init__(self, name: str, known: Mapping[str, object]) -> None:
        super().__init__(f"no generated part is called {name!r}; write one of {', '.join(known)}")
        self.name = name


def transition_table() -> str:
    """Every row of the life of a sequence, in the order of the code."""
    lines = [
        "| from | what happened | to | owner of the KV blocks then | meaning |",
        "|" + "---|" * 5,
    ]
    lines += [
        f"| `{row.source.value}` | `{row.change.value}` | `{row.target.value}` "
        f"| {row.kv_owner} | {row.meaning} |"
        for row in TRANSITIONS
    ]
    return "\n".join(lines) + "\n"


def state_diagram() -> str:
    """The same rows as a picture; failing and leaving are possible everywhere and left out."""
    everywhere = (Change.GAVE_UP, Change.CALLER_LEFT, Change.OPERATOR_CANCELLED)
    drawn = [row for row in TRANSITIONS if row.change not in everywhere]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.RECEIVED.value}"]
    lines += [f"    {row.source.value} --> {row.target.value}: {row.change.value}" for row in drawn]
    targets = {row.target for row in drawn}
    lines += [f"    {phase.value} --> [*]" for phase in Phase if phase in TERMINAL & targets]
    return "\n".join([*lines, "```"]) + "\n"


def decision_list(folder: Path = DOCS / "decisions") -> str:
    """A link to every decision, by its title."""
    pages = [path for path in sorted(folder.glob("*.md")) if path.name != "README.md"]
    titles = [path.read_text("utf-8").splitlines()[0].removeprefix("# ") for path in pages]
    return "".join(f"- [{title}]({path.name})\n" for path, title in zip(pages, titles, strict=True))


PARTS: dict[str, Callable[[], str]] = {
    "transition-table": transition_table,
    "state-diagram": state_diagram,
    "decision-list": decision_list,
}


def with_generated_parts(page: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """The page with every part between markers written anew. Raises: UnknownPart."""

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in parts:
            raise UnknownPart(name, parts)
        return f"{match['open']}\n{parts[name]()}\n{match['close']}"

    return _PART.sub(replaced, page)


def stale_pages(docs: Path) -> dict[Path, str]:
    """Pages whose generated parts differ from the code, with the text they should have."""
    fresh = {
        path: with_generated_parts(path.read_text("utf-8")) for path in sorted(docs.rglob("*.md"))
    }
    return {path: text for path, text in fresh.items() if text != path.read_text("utf-8")}


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with --check only name those that are stale."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate_docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    is_check = parser.parse_args(argv).check
    stale = stale_pages(DOCS)
    for path, text in stale.items():
        sys.stdout.write(f"{'stale' if is_check else 'wrote'}: {path.relative_to(ROOT)}\n")
        if not is_check:
            path.write_text(text, "utf-8")
    return 1 if is_check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
