"""Passages and questions made from reStructuredText."""

from engine.bundled.corpus import (
    MAX_ANSWER_CHARS,
    answer_from,
    build_corpus,
    frequent_words,
    is_held_out,
)

_FUNCTIONS = """
Built-in Functions
==================

.. function:: len(s)

   Return the length (the number of items) of an object. The argument may be a sequence.

.. class:: Reader(stream)

   Reads lines from a stream and gives them to its caller one by one.

   .. method:: close()

      Close the stream; reading from it again is an error.
"""

_FAQ = """
Why are floating point results surprising?
------------------------------------------

Numbers are stored in binary, so that most decimal fractions are only close to what was written.
"""


def test_a_description_answers_questions_about_its_name() -> None:
    corpus = build_corpus({"library/functions": _FUNCTIONS})
    by_question = {each.questions[0]: each for each in corpus.exchanges}
    length = by_question["What does the len function do?"]
    assert "What does the len function return?" in length.questions
    assert length.answer.startswith("Return the length (the number of items) of an object.")
    assert "What does the Reader.close method do?" in by_question
    assert "What is the Reader class?" in by_question


def test_a_heading_that_asks_is_a_question() -> None:
    corpus = build_corpus({"faq/design": _FAQ})
    assert [each.questions for each in corpus.exchanges] == [
        ("Why are floating point results surprising?",)
    ]


def test_a_paragraph_that_occurs_twice_is_kept_once() -> None:
    corpus = build_corpus({"faq/design": _FAQ, "faq/general": _FAQ})
    assert len(corpus.passages) == 1
    assert len(corpus.exchanges) == 1


def test_what_is_held_out_appears_neither_in_training_passages_nor_in_answers() -> None:
    sections = [
        f"Topic {name}\n===========\n\nThe value of topic {name} is explained in this sentence.\n\n"
        for name in (f"{first}{second}" for first in "abcdefghijkl" for second in "mnopqrstuvwx")
    ]
    corpus = build_corpus({"library/topics": "".join(sections)})
    assert corpus.held_out_passages
    assert all(is_held_out(passage) for passage in corpus.held_out_passages)
    assert not set(corpus.held_out_passages) & set(corpus.passages)
    assert not set(corpus.held_out_passages) & {each.answer for each in corpus.exchanges}
    assert len(corpus.passages) + len(corpus.held_out_passages) == len(sections)


def test_answers_end_with_a_sentence_and_have_a_limit() -> None:
    sentence = "This sentence is repeated until the answer is longer than allowed."
    answer = answer_from([" ".join([sentence] * 20)])
    assert answer.endswith("allowed.")
    assert MAX_ANSWER_CHARS - len(sentence) - 1 <= len(answer) <= MAX_ANSWER_CHARS
    assert answer_from(["Too short."]) == ""
    assert answer_from([]) == ""


def test_rare_words_are_not_counted_as_words() -> None:
    assert frequent_words(["a list of a list"] * 5 + ["of xyzzy"]) == ["list", "of"]
