"""Turns reStructuredText into plain prose blocks: headings, entries and paragraphs.

Only what the documentation of Python uses is understood; what is not prose (code, tables, lists of
options, comments) is dropped. Nothing here reads a file. `corpus` builds documents from the blocks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile, takewhile


@dataclass(frozen=True, slots=True)
class Heading:
    """A section title; `module` is true when it introduces a module."""

    text: str
    module: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """The start of a description: of a function, class, glossary term or the like."""

    kind: str
    # Without arguments; with its class or module where the source writes them.
    name: str
    indent: int


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph of prose on a single line."""

    text: str
    indent: int


Block = Heading | Entry | Paragraph

_ENTRY_KINDS = {
    "function": "function",
    "coroutinefunction": "function",
    "awaitablefunction": "function",
    "decorator": "decorator",
    "c:function": "function",
    "class": "class",
    "method": "method",
    "classmethod": "method",
    "staticmethod": "method",
    "coroutinemethod": "method",
    "abstractmethod": "method",
    "awaitablemethod": "method",
    "exception": "exception",
    "attribute": "attribute",
    "data": "data",
    "opcode": "opcode",
    "describe": "data",
    "object": "data",
}
# Directives whose body is prose that belongs to the text around it.
_PROSE_DIRECTIVES = {"note", "warning", "important", "tip", "topic", "glossary", "epigraph"}

_DIRECTIVE = re.compile(r"\.\. ([a-z][a-z:_-]*)::\s*(.*)")
_UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1{2,}$")
_BULLET = re.compile(r"(?:[*\-]|#\.|\(?[0-9a-z]\)|[0-9]{1,2}\.)\s+")
_NOT_PROSE = re.compile(r":[\w -]+:(\s|$)|\+[-=+]{3,}|=+(\s+=+)+$|\|\s|>>>|\$ ")

_NUMBERED_ROLE = re.compile(r":(pep|rfc|issue|gh):`([^`<]+?)`")
_ROLE_WITH_TITLE = re.compile(r":[\w:+-]+:`([^`<]+?)\s*<[^`>]*>`")
_ROLE = re.compile(r":[\w:+-]+:`([^`]*)`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])")
_FOOTNOTE = re.compile(r"\s*\[(#[\w-]*|\d+|\*)\]_")

# A line of the source as (indentation, text).
_Line = tuple[int, str]


def strip_roles(text: str) -> str:
    """The words a reader sees: roles, links, footnote marks and emphasis removed."""
    text = _FOOTNOTE.sub("", text)
    # What stands in a literal is kept as it is, so its stars hide from the emphasis rule.
    text = re.sub(r"``(.+?)``", lambda match: match[1].replace("*", "\0"), text)
    text = _NUMBERED_ROLE.sub(lambda match: f"{_shown_prefix(match[1])} {match[2]}", text)
    text = _ROLE_WITH_TITLE.sub(r"\1", text)
    text = _ROLE.sub(lambda match: _shown_target(match[1]), text)
    text = _LINK.sub(r"\1", text)
    text = re.sub(r"`([^`]+)`_{0,2}", r"\1", text)
    text = _EMPHASIS.sub(r"\1", text)
    text = re.sub(r"\\(\W)", lambda match: "" if match[1].isspace() else match[1], text)
    return re.sub(r"\s+", " ", text.replace("\0", "*")).strip()


def _shown_prefix(role: str) -> str:
    return role.upper() if role in ("pep", "rfc") else "issue"


def _shown_target(target: str) -> str:
    """What Sphinx prints for a role: `~a.b` is shown as `b`, `!a` as `a`."""
    if target.startswith("~"):
        return target.rpartition(".")[2].lstrip("~")
    return target.lstrip("!")


def leading_prose(text: str) -> str:
    """The sentences of a paragraph up to the last one that reads as prose; may be empty."""
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z_])", text)
    while sentences:
        candidate = " ".join(sentences)
        if is_prose(candidate):
            return candidate
        sentences.pop()
    return ""


def is_prose(text: str) -> bool:
    """True for text that reads as sentences: long enough, ended, mostly letters."""
    if len(text) < 25 or not text.isascii() or text[-1] not in ".!?)":
        return False
    if not (text[0].isalnum() or text[0] in "_("):
        return False
    if any(mark in text for mark in (">>>", "://", "::", "|", "`", "\\")):
        return False
    num_letters = sum(char.isalpha() or char == " " for char in text)
    return num_letters >= 0.85 * len(text)


_LABELLED_TITLE = re.compile(
    r"^\.\. _([\w.-]+):[ \t]*\n(?:[ \t]*\n|\.\. _[^\n]*\n)*(\S[^\n]*)\n[=~^*-]{3}", re.M
)
_REFERENCE = re.compile(r":ref:`([\w.-]+)`")


def labelled_titles(source: str) -> dict[str, str]:
    """Title of each section that carries a label: what a bare `:ref:` shows."""
    return {match[1].lower(): strip_roles(match[2]) for match in _LABELLED_TITLE.finditer(source)}


def resolve_references(source: str, titles: Mapping[str, str]) -> str:
    """Replace bare `:ref:` roles by the titles they point to, where these are known."""
    return _REFERENCE.sub(lambda match: titles.get(match[1].lower(), match[0]), source)


def blocks(source: str) -> Iterator[Block]:
    """All headings, entries and paragraphs of one file, in order."""
    skip_indent: int | None = None
    for chunk in _chunks(source):
        if skip_indent is not None:
            # What is indented deeper belongs to code, a table or a comment.
            chunk = _without_deeper_lines(chunk, skip_indent)
            if not chunk:
                continue
        found, skip_indent = _blocks_of_chunk(chunk)
        yield from found


def _chunks(source: str) -> Iterator[list[_Line]]:
    """Runs of lines without an empty line between them."""
    chunk: list[_Line] = []
    for line in [*source.expandtabs(8).splitlines(), ""]:
        text = line.strip()
        if text:
            chunk.append((len(line) - len(line.lstrip()), text))
        elif chunk:
            yield chunk
            chunk = []


def _blocks_of_chunk(chunk: list[_Line]) -> tuple[list[Block], int | None]:
    """The blocks of one chunk, and the indentation beyond which what follows is no prose."""
    found: list[Block] = []
    skip_indent: int | None = None
    while chunk:
        indent, text = chunk[0]
        if len(chunk) > 1 and _is_heading(chunk):
            found.append(Heading(strip_roles(text), module=text.startswith(":mod:")))
            chunk = chunk[2:]
        elif text.startswith(".. ") or text in ("..", "::"):
            entry, is_body_prose = _directive(text, indent)
            chunk = chunk[1:]
            if entry is not None:
                found.append(entry)
            if not is_body_prose:
                # Options and further signatures; for anything but an entry, the body too.
                chunk = _without_deeper_lines(chunk, indent)
                skip_indent = None if entry is not None else indent
        elif _NOT_PROSE.match(text):
            return found, indent
        elif _UNDERLINE.match(text):
            chunk = chunk[1:]
        else:
            chunk, skip_indent = _take_paragraph(chunk, found)
    return found, skip_indent


def _without_deeper_lines(chunk: list[_Line], limit: int) -> list[_Line]:
    return list(dropwhile(lambda line: line[0] > limit, chunk))


def _is_heading(chunk: list[_Line]) -> bool:
    (indent, title), (_, rule) = chunk[0], chunk[1]
    return (
        indent == 0
        and bool(_UNDERLINE.match(rule))
        and not _UNDERLINE.match(title)
        and not title.startswith("..")
        and len(rule) >= min(len(title), 8)
    )


def _directive(text: str, indent: int) -> tuple[Entry | None, bool]:
    """The entry a directive opens, if any, and whether the lines under it may be read on."""
    match = _DIRECTIVE.match(text)
    if match is None:
        return None, False
    kind = _ENTRY_KINDS.get(match[1])
    if kind is None:
        return None, match[1] in _PROSE_DIRECTIVES
    signature = match[2].partition("(")[0].split()
    return (Entry(kind, signature[-1].strip("*"), indent) if signature else None), False


def _take_paragraph(chunk: list[_Line], found: list[Block]) -> tuple[list[_Line], int | None]:
    """Move the first paragraph of a chunk to `found`; return the rest and the new skip limit."""
    indent, text = chunk[0]
    bullet = _BULLET.match(text)
    if bullet:
        indent, text = indent + bullet.end(), text[bullet.end() :]
    elif len(chunk) > 1 and chunk[1][0] > indent:
        # A single line above an indented one is the term of a definition.
        found.append(Entry("term", strip_roles(text), indent))
        return chunk[1:], None
    rest = chunk[1:]
    body = list(takewhile(lambda line: line[0] >= indent and not _BULLET.match(line[1]), rest))
    text = strip_roles(" ".join([text, *(line for _, line in body)]))
    rest = rest[len(body) :]
    opens_code = text.endswith("::")
    prose = leading_prose(text)
    if prose:
        found.append(Paragraph(prose, indent))
    return rest, indent if opens_code else None
