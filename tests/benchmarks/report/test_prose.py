"""Markdown of our own reports as HTML; pages of text, section by section."""

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report.prose import as_html, inline, sections_of, table

PAGE = """\
# Results

Each file holds `figures`.

## Memory

`memory.json`, measured on a day.

| a | b |
|---|---|
| x | 1 |

**Why it is so.** Because of
[a reason](../docs/reason.md).

- a point

**Where `x` is lost.** Nowhere.

### Nothing is named here

Text.
"""


def test_a_section_knows_its_files_and_the_paragraphs_that_give_reasons() -> None:
    top, memory, last = sections_of(PAGE)
    assert (top.heading, memory.heading) == ("Results", "Memory")
    assert memory.files == {"memory.json"}
    assert [one[:8] for one in memory.reasons] == ["**Why it", "**Where "]
    assert last.files == frozenset()
    assert not last.reasons


def test_links_become_their_text_and_bold_text_may_hold_code() -> None:
    assert inline("see [the *page*](https://example.org/a_b)") == "see the <em>page</em>"
    expected = "<strong>Where <code>x</code> is</strong> lost"
    assert inline("**Where `x` is** lost") == expected
    assert inline("`a*b` and `c*d`, 2 * 3") == "<code>a*b</code> and <code>c*d</code>, 2 * 3"


def test_what_looks_like_a_tag_is_text() -> None:
    assert inline("a < b & `<script>`") == "a &lt; b &amp; <code>&lt;script&gt;</code>"


@given(st.text(alphabet="ab`*[]()<>&\0 1|", max_size=40))
def test_no_text_opens_a_tag_of_its_own(text: str) -> None:
    html = inline(text)
    for tag in ("code", "strong", "em"):
        html = html.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    assert "<" not in html
    assert ">" not in html


def test_paragraphs_lists_and_tables_are_told_apart() -> None:
    html = as_html("One\nline.\n\n- a\n- b\n\n| p | q |\n|---|---|\n| `x` | 1.5 |")
    assert "<p>One line.</p>" in html
    assert "<ul><li>a</li><li>b</li></ul>" in html
    assert '<th class="w">p</th><th>q</th>' in html
    assert '<td class="w"><code>x</code></td><td>1.5</td>' in html


def test_a_table_without_rows_has_its_head() -> None:
    assert "<th>a</th>" in table(["a"], [])
