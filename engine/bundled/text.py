"""Turns reStructuredText into plain prose blocks: headings, entries and paragraphs.

Only what the documentation of Python uses is understood; what is not prose (code, tables, lists of
options, comments) is dropped. Nothing here reads a file. `corpus` builds documents from the blocks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


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

_SIGNATURE_KINDS = {
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
_BULLET = re.compile(r"(?:[*\-•]|#\.|\(?[0-9a-zA-Z]\)|[0-9]{1,2}\.)\s+")
_FIELD = re.compile(r":[\w -]+:(\s|$)")
_TABLE = re.compile(r"(\+[-=+]{3,}|=+(\s+=+)+$|\|.*\|$)")

_ROLE_WITH_TITLE = re.compile(r":[\w:+-]+:`([^`<]+?)\s*<[^`>]*>`")
_ROLE = re.compile(r":[\w:+-]+:`([^`]*)`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?")
_NUMBERED_ROLE = {"pep": "PEP ", "rfc": "RFC ", "issue": "issue ", "gh": "issue "}


def strip_roles(text: str) -> str:
    """The words a reader sees: roles, links, footnote marks and emphasis removed."""
    text = re.sub(r"\s*\[(#[\w-]*|\d+|\*)\]_", "", text)
    text = re.sub(r"``(.+?)``", lambda m: m[1].replace("*", "\0").replace("_", "\1"), text)
    text = re.sub(
        r":(pep|rfc|issue|gh):`([^`<]+?)`", lambda m: f"{_NUMBERED_ROLE[m[1]]}{m[2]}", text
    )
    text = _ROLE_WITH_TITLE.sub(r"\1", text)
    text = _ROLE.sub(lambda m: _shown_target(m[1]), text)
    text = _LINK.sub(r"\1", text)
    text = re.sub(r"`([^`]+)`__?", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])", r"\1", text)
    text = re.sub(r"\\(\W)", lambda m: "" if m[1].isspace() else m[1], text)
    text = text.replace("\0", "*").replace("\1", "_").replace("`", "")
    return re.sub(r"\s+", " ", text).strip()


def _shown_target(target: str) -> str:
    """What Sphinx prints for a role: `~a.b` is shown as `b`, `!a` as `a`."""
    if target.startswith("~"):
        return target.rpartition(".")[2].lstrip("~")
    return target.lstrip("!")


def is_prose(text: str) -> bool:
    """True for a paragraph that reads as sentences: long enough, ended, mostly letters."""
    if len(text) < 25 or text[-1] not in ".!?:)\"'" or not (text[0].isalnum() or text[0] in "_('\""):
        return False
    if ">>>" in text or "://" in text or "::" in text or "|" in text:
        return False
    letters = sum(char.isalpha() or char == " " for char in text)
    return letters >= 0.88 * len(text) and text.isascii()


def blocks(source: str) -> Iterator[Block]:
    """All prose blocks of one file, in order."""
    return _Parser(source).run()


class _Parser:
    """One pass over the lines; indentation decides what belongs to a skipped directive."""

    def __init__(self, source: str) -> None:
        self._lines = source.expandtabs(8).splitlines()
        self._pending: list[str] = []
        self._pending_indent = 0
        # Lines indented deeper than this belong to something that is not prose.
        self._skip_indent: int | None = None

    def run(self) -> Iterator[Block]:
        index = 0
        while index < len(self._lines):
            line = self._lines[index]
            index += 1
            text = line.strip()
            indent = len(line) - len(line.lstrip())
            if not text:
                yield from self._flush()
                continue
            if self._skip_indent is not None:
                if indent > self._skip_indent:
                    continue
                self._skip_indent = None
            if self._is_underlined(index, text, indent):
                yield from self._flush()
                yield Heading(strip_roles(text), module=text.startswith(":mod:"))
                index += 1
            elif text.startswith(".. ") or text in ("..", "::"):
                yield from self._flush()
                yield from self._directive(text, indent)
            elif _UNDERLINE.match(text) or (not self._pending and _FIELD.match(text)):
                yield from self._flush()
            elif _TABLE.match(text) or text.startswith((">>>", "$ ", "| ")):
                yield from self._flush()
                self._skip_paragraph(index)
                self._skip_indent = indent
            else:
                yield from self._prose_line(text, indent)
        yield from self._flush()

    def _is_underlined(self, next_index: int, text: str, indent: int) -> bool:
        if indent or self._pending or next_index >= len(self._lines):
            return False
        rule = self._lines[next_index].rstrip()
        return bool(_UNDERLINE.match(rule)) and len(rule) >= min(len(text), 8)

    def _directive(self, text: str, indent: int) -> Iterator[Block]:
        match = _DIRECTIVE.match(text)
        kind = match[1] if match else ""
        if match and kind in _SIGNATURE_KINDS:
            name = re.split(r"[(\s]", _without_c_type(kind, match[2]), maxsplit=1)[0].strip("*`")
            if name:
                yield Entry(_SIGNATURE_KINDS[kind], name, indent)
            # Further signatures follow until the first empty line and are no prose.
            self._skip_indent = None
            self._blank_signature_lines(match[2], indent)
        elif kind not in _PROSE_DIRECTIVES:
            self._skip_indent = indent

    def _blank_signature_lines(self, first: str, indent: int) -> None:
        index = next(i for i, line in enumerate(self._lines) if line.strip().endswith(first.strip()))
        del index, indent

    def _skip_paragraph(self, index: int) -> None:
        while index < len(self._lines) and self._lines[index].strip():
            self._lines[index] = ""
            index += 1

    def _prose_line(self, text: str, indent: int) -> Iterator[Block]:
        raise RuntimeError

    def _flush(self) -> Iterator[Block]:
        raise RuntimeError
