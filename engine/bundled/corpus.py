"""Builds the training documents: passages of prose, and questions with their answers.

A passage is the text under one heading. A question is made from what a paragraph describes (a
function, a glossary term, a module, a heading), so that the model learns the form of a chat. Pure:
`train` reads the files and passes their content in.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from engine.bundled.text import (
    Block,
    Entry,
    Heading,
    Paragraph,
    blocks,
    labelled_titles,
    resolve_references,
)

MAX_ANSWER_CHARS = 360
MIN_ANSWER_CHARS = 40
# Of the passages, this share is kept for validation, chosen by a hash of their text.
HELD_OUT_PERCENT = 3
MIN_WORD_COUNT = 5


@dataclass(frozen=True, slots=True)
class Exchange:
    """Several wordings of one question, and the answer to all of them."""

    questions: tuple[str, ...]
    answer: str
    # How often it is shown per pass over the corpus, on average.
    weight: float


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything the model is trained on, and the passages it is measured on."""

    passages: tuple[str, ...]
    held_out_passages: tuple[str, ...]
    exchanges: tuple[Exchange, ...]

    def training_texts(self) -> Iterator[str]:
        """Every text once: what the tokenizer learns from."""
        yield from self.passages
        for exchange in self.exchanges:
            yield from exchange.questions
            yield exchange.answer


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the paragraphs after it describe."""

    kind: str
    name: str
    # Paragraphs indented deeper than this belong to it.
    indent: int


# Shown more often: what a reader is most likely to ask about. Zero: text that answers no question.
_WEIGHT_BY_PREFIX = {
    "library/functions": 6.0,
    "glossary": 6.0,
    "faq/": 4.0,
    "library/exceptions": 4.0,
    "tutorial/": 2.0,
    "library/stdtypes": 2.0,
    "c-api/": 0.3,
    "whatsnew/": 0.0,
    "distutils/": 0.0,
    "install/": 0.0,
}
_OTHER_WEIGHT = 0.6
_MODULE_WEIGHT = 4.0

# {0} is the name, {1} its article.
_WORDINGS = {
    "function": ("What does the {0} function do?", "What does {0} do?", "Explain {0}."),
    "method": ("What does the {0} method do?", "What does {0} do?", "Explain {0}."),
    "decorator": ("What does the {0} decorator do?", "What does {0} do?"),
    "class": ("What is the {0} class?", "What is {0}?", "Explain {0}."),
    "exception": ("When is {0} raised?", "What is {0}?", "What does {0} mean?"),
    "attribute": ("What is {0}?",),
    "data": ("What is {0}?",),
    "opcode": ("What does {0} do?",),
    "term": ("What is {1} {0}?", "What is {0}?", "What does {0} mean?", "Explain {0}."),
    "module": (
        "What is the {0} module for?",
        "What is the {0} module?",
        "What does the {0} module do?",
        "Tell me about the {0} module.",
    ),
    "heading": ("Tell me about {0}.", "Explain {0}."),
    "question": ("{0}",),
}
_RETURN_WORDINGS = {
    "function": ("What does the {0} function return?", "What does {0} return?"),
    "method": ("What does the {0} method return?", "What does {0} return?"),
}


def build_corpus(source_by_path: Mapping[str, str]) -> Corpus:
    """Documents from reST sources, by path such as `library/os`."""
    titles: dict[str, str] = {}
    for source in source_by_path.values():
        titles.update(labelled_titles(source))
    passages: list[str] = []
    held_out: list[str] = []
    exchanges: dict[str, Exchange] = {}
    seen: set[str] = set()
    for path in sorted(source_by_path):
        found = list(blocks(resolve_references(source_by_path[path], titles)))
        for passage in passages_of(found, seen):
            may_hold_out = _weight_of(path) < 1
            (held_out if may_hold_out and is_held_out(passage) else passages).append(passage)
        for exchange in exchanges_of(found, path):
            exchanges.setdefault(exchange.questions[0], exchange)
    return Corpus(tuple(passages), tuple(held_out), _without_held_out(exchanges.values(), held_out))


def _without_held_out(exchanges: Iterable[Exchange], held_out: list[str]) -> tuple[Exchange, ...]:
    unseen = "\n".join(held_out)
    return tuple(each for each in exchanges if each.weight and each.answer[:80] not in unseen)


def is_held_out(passage: str) -> bool:
    """Whether a passage is for validation; depends on its text alone."""
    digest = hashlib.blake2b(passage.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % 100 < HELD_OUT_PERCENT


def passages_of(found: Iterable[Block], seen: set[str]) -> Iterator[str]:
    """The prose under each heading, one paragraph a line; `seen` drops what was yielded before."""
    paragraphs: list[str] = []
    for block in [*found, Heading("")]:
        if isinstance(block, Heading):
            if paragraphs:
                yield "\n".join(paragraphs)
            paragraphs = []
        elif isinstance(block, Paragraph) and block.text not in seen:
            seen.add(block.text)
            paragraphs.append(block.text)


def exchanges_of(found: Iterable[Block], path: str) -> Iterator[Exchange]:
    """Questions about what a file describes, with the first paragraphs on it as the answer."""
    module = ""
    subject: _Subject | None = None
    paragraphs: list[str] = []
    classes: list[_Subject] = []
    for block in [*found, Heading("")]:
        if isinstance(block, Paragraph):
            if subject is not None and block.indent > subject.indent:
                paragraphs.append(block.text)
            continue
        yield from _exchange(subject, paragraphs, path)
        paragraphs = []
        if isinstance(block, Heading):
            classes = []
            subject = _subject_of_heading(block)
            if block.module and subject is not None:
                module = subject.name
            continue
        while classes and classes[-1].indent >= block.indent:
            classes.pop()
        subject = _subject_of_entry(block, module, classes, path)
        if block.kind in ("class", "exception") and subject is not None:
            classes.append(subject)


def _subject_of_heading(heading: Heading) -> _Subject | None:
    text = heading.text.rstrip(".")
    if heading.module:
        return _Subject("module", text.split()[0].rstrip(":"), -1)
    if text.endswith("?"):
        return _Subject("question", text, -1)
    return _Subject("heading", text, -1) if re.fullmatch(r"[A-Za-z][\w' -]{3,50}", text) else None


def _subject_of_entry(
    entry: Entry, module: str, classes: list[_Subject], path: str
) -> _Subject | None:
    name = entry.name
    if entry.kind == "term":
        return _Subject("term", name, entry.indent) if path.startswith("glossary") else None
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        return None
    if classes and "." not in name:
        name = f"{classes[-1].name}.{name}"
    elif module and "." not in name and entry.kind in ("function", "class", "decorator", "data"):
        name = f"{module}.{name}"
    return _Subject(entry.kind, name, entry.indent)


def _exchange(subject: _Subject | None, paragraphs: list[str], path: str) -> Iterator[Exchange]:
    answer = answer_from(paragraphs)
    if subject is None or not answer:
        return
    wordings = _WORDINGS[subject.kind]
    if answer.startswith("Return"):
        wordings += _RETURN_WORDINGS.get(subject.kind, ())
    article = "an" if subject.name[0].lower() in "aeiou" else "a"
    questions = tuple(wording.format(subject.name, article) for wording in wordings)
    weight = _weight_of(path)
    if subject.kind == "module":
        weight = max(weight, _MODULE_WEIGHT if path.startswith("library/") else 0.0)
    elif subject.kind == "heading":
        weight = min(weight, 1.0)
    yield Exchange(questions, answer, weight)


def answer_from(paragraphs: Iterable[str]) -> str:
    """The first paragraphs, cut at the end of a sentence; empty when there is too little."""
    answer = ""
    for paragraph in paragraphs:
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z_])", paragraph):
            if len(answer) + len(sentence) > MAX_ANSWER_CHARS:
                return answer if len(answer) >= MIN_ANSWER_CHARS else ""
            answer = f"{answer} {sentence}".strip()
        if len(answer) >= MAX_ANSWER_CHARS // 3:
            break
    return answer if len(answer) >= MIN_ANSWER_CHARS else ""


def frequent_words(texts: Iterable[str]) -> list[str]:
    """Words that occur often enough to be words: what an answer may be checked against."""
    counts = Counter(word for text in texts for word in re.findall(r"[A-Za-z]{2,}", text))
    return sorted(word for word, count in counts.items() if count >= MIN_WORD_COUNT)


def _weight_of(path: str) -> float:
    for prefix, weight in _WEIGHT_BY_PREFIX.items():
        if path.startswith(prefix):
            return weight
    return _OTHER_WEIGHT
