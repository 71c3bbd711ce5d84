"""The little Markdown that our own reports and pages of results use, as HTML.

Links become their text: the page stands alone. Anything else is text and escaped.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_HEADING = re.compile(r"^(#{1,6}) +(.+)$")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_CODE, _KEPT = re.compile(r"`([^`]+)`"), re.compile(r"\0(\d+)\0")
_STRONG, _STRESSED = re.compile(r"\*\*(.+?)\*\*"), re.compile(r"(?<!\w)\*([^*]+?)\*(?!\w)")
_FILE = re.compile(r"[\w.]+\.json\b")
_FIGURE = re.compile(r"[-+<]?[\d,.]+( ?(%|\+|s|ms|x|MiB))?( \(.*\))?|-|none|")


@dataclass(frozen=True, slots=True)
class Section:
    """Of a page of results, from its heading to the next."""

    heading: str
    text: str

    @property
    def files(self) -> frozenset[str]:
        """Files of results that it names."""
        return frozenset(_FILE.findall(f"{self.heading}\n{self.text}"))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Paragraphs that begin with a claim in bold: why a figure is what it is."""
        blocks = [block for block in _blocks(self.text) if block.startswith("**")]
        return tuple(block.partition("\n|")[0] for block in blocks)


def sections_of(text: str) -> list[Section]:
    """In their order; what stands before the first heading is none."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading is not None:
            found.append((heading[2].replace("`", ""), []))
        elif found:
            found[-1][1].append(line)
    return [Section(heading, "\n".join(lines)) for heading, lines in found]


def as_html(markdown: str) -> str:
    """Paragraphs, lists and tables."""
    parts = []
    for block in _blocks(markdown):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            parts.append(_table(lines))
        elif lines[0].startswith("- "):
            items = "".join(f"<li>{inline(line[2:])}</li>" for line in lines)
            parts.append(f"<ul>{items}</ul>")
        else:
            parts.append(f"<p>{inline(' '.join(lines))}</p>")
    return "\n".join(parts)


def inline(text: str) -> str:
    """One paragraph: code, bold, stressed, and the text of links."""
    codes: list[str] = []

    def keep(found: re.Match[str]) -> str:
        codes.append(f"<code>{found[1]}</code>")
        return f"\0{len(codes) - 1}\0"

    # Stars in code are no marks, but bold text may hold code.
    marked = _CODE.sub(keep, escape(_LINK.sub(r"\1", text.replace("\0", ""))))
    marked = _STRONG.sub(r"<strong>\1</strong>", marked)
    marked = _STRESSED.sub(r"<em>\1</em>", marked)
    return _KEPT.sub(lambda found: codes[int(found[1])], marked)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML already; columns of figures stand to the right."""
    kinds = [
        "" if all(map(_FIGURE.fullmatch, column)) else ' class="w"'
        for column in zip(*rows, strict=True)
    ]
    kinds = kinds or [""] * len(head)
    parts = ['<div class="scroll"><table><thead>', _row("th", head, kinds), "</thead><tbody>"]
    parts += [_row("td", row, kinds) for row in rows]
    return "".join([*parts, "</tbody></table></div>"])


def _row(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    told = (f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
    return f"<tr>{''.join(told)}</tr>"


def _table(lines: Sequence[str]) -> str:
    rows = [[inline(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
    return table(rows[0], rows[2:])


def _blocks(text: str) -> Iterator[str]:
    """What empty lines part."""
    for block in re.split(r"\n\s*\n", text):
        if block.strip():
            yield block.strip("\n")
