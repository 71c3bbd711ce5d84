"""Cleaning of reStructuredText to prose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bundled.text import (
    Block,
    Entry,
    Heading,
    Paragraph,
    blocks,
    is_prose,
    labelled_titles,
    leading_prose,
    resolve_references,
    strip_roles,
)


@pytest.mark.parametrize(
    ("marked", "shown"),
    [
        ("Call :func:`len` first.", "Call len first."),
        ("Use :meth:`~str.join` here.", "Use join here."),
        ("See :class:`!Hidden` now.", "See Hidden now."),
        ("See :ref:`the table <op-table>` below.", "See the table below."),
        ("See :c:func:`PyList_New` and :pep:`484`.", "See PyList_New and PEP 484."),
        ("A `link <https://example.org>`_ and `name`_.", "A link and name."),
        ("The *first* and **second** word.", "The first and second word."),
        ("Pass ``*args`` and ``**kwargs`` on.", "Pass *args and **kwargs on."),
        ("As said [#note]_ before [1]_.", "As said before."),
        ("Two\n   lines   here.", "Two lines here."),
        (r"Joined\ word and \* star.", "Joinedword and * star."),
    ],
)
def test_markup_becomes_the_words_a_reader_sees(marked: str, shown: str) -> None:
    assert strip_roles(marked) == shown


def test_code_tables_comments_and_options_are_dropped() -> None:
    source = """
.. _label:

Sequence basics
===============

.. module:: sequences
   :synopsis: Not prose at all, only an option line.

.. a comment that reads like a sentence, but nobody sees it.

The first paragraph goes over
two lines and ends here.

This one introduces some code. Here it is::

   print("this is code, it looks like a sentence.")

   more_code = "and this belongs to it as well."

=====  ==================================
 Key    The meaning of the key is shown.
=====  ==================================

>>> print("A doctest is not prose either.")
A doctest is not prose either.

* The first item of a list is
  a sentence of its own.
* The second item of a list is one too.

.. note::

   What a note says belongs to the text around it.

The last paragraph comes after all of these.
"""
    assert list(blocks(source)) == [
        Heading("Sequence basics"),
        Paragraph("The first paragraph goes over two lines and ends here.", 0),
        Paragraph("This one introduces some code.", 0),
        Paragraph("The first item of a list is a sentence of its own.", 2),
        Paragraph("The second item of a list is one too.", 2),
        Paragraph("What a note says belongs to the text around it.", 3),
        Paragraph("The last paragraph comes after all of these.", 0),
    ]


def test_descriptions_carry_the_name_without_its_arguments() -> None:
    source = """
.. function:: open(file, mode='r')
              open(file)
   :noindex:

   Open a file and return a file object for it.

.. c:function:: PyObject *PyList_New(Py_ssize_t len)

   Return a new list of the given length.

.. glossary::

   mutable
      Objects that can change their value but keep their id.
"""
    expected: list[Block] = [
        Entry("function", "open", 0),
        Paragraph("Open a file and return a file object for it.", 3),
        Entry("function", "PyList_New", 0),
        Paragraph("Return a new list of the given length.", 3),
        Entry("term", "mutable", 3),
        Paragraph("Objects that can change their value but keep their id.", 6),
    ]
    assert list(blocks(source)) == expected


def test_module_titles_are_told_from_other_headings() -> None:
    source = ":mod:`json` --- JSON encoder\n============================\n\nUsage\n-----\n"
    assert list(blocks(source)) == [
        Heading("json --- JSON encoder", module=True),
        Heading("Usage"),
    ]


def test_trailing_sentences_that_are_not_prose_are_cut() -> None:
    text = "Return True if all elements are true. Equivalent to:"
    assert leading_prose(text) == "Return True if all elements are true."
    assert leading_prose("x = y + 1; z := {a: b, c: d}.") == ""


def test_a_bare_reference_becomes_the_title_it_points_to() -> None:
    titles = labelled_titles(".. _truth:\n\nTruth Value Testing\n===================\n")
    assert titles == {"truth": "Truth Value Testing"}
    assert (
        resolve_references("See :ref:`truth` and :ref:`lost`.", titles)
        == "See Truth Value Testing and :ref:`lost`."
    )


_LINES = st.lists(
    st.one_of(
        st.sampled_from(
            ["", "=====", ".. note::", ".. function:: f(x)", "A plain sentence of some length."]
        ),
        st.text(alphabet="ab .:*`_<>|=-~\\\t", max_size=30),
    ),
    max_size=20,
)


@given(_LINES, st.integers(0, 8))
def test_any_text_gives_clean_single_line_paragraphs(lines: list[str], indent: int) -> None:
    source = "\n".join(" " * (indent * (i % 3)) + line for i, line in enumerate(lines))
    for block in blocks(source):
        if isinstance(block, Paragraph):
            assert is_prose(block.text)
            assert "\n" not in block.text
            assert "`" not in block.text
