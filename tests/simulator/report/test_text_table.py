"""The table: one block for each rate, aligned, the best marked."""

from simulator.metrics.summary import summary
from simulator.metrics.testing import InventedRun
from simulator.report.columns import COLUMNS, best, groups, labels, three_digits
from simulator.report.text_table import BEST, text_table

SLOW = InventedRun("slow", num_requests=40, token_s=0.04)
FAST = InventedRun("fast", num_requests=40, token_s=0.01)


def test_every_policy_has_a_line_under_headings_that_line_up() -> None:
    table = text_table([summary(one.result()) for one in (SLOW, FAST)])
    title, first, second, rule, slow, fast, _, note = table.splitlines()
    assert "invented" in title
    assert "imagined" in title
    assert second.startswith("policy")
    assert set(rule) == {"-"}
    assert slow.startswith("slow")
    assert fast.startswith("fast")
    assert note.startswith(BEST)
    # A heading ends where its figures end.
    end = first.index("goodput") + len("goodput")
    for line in (second, slow, fast):
        assert line[end - 1] != " "
        assert line[end : end + 1] in (" ", BEST)


def test_the_best_of_each_column_is_marked_and_ties_are_not() -> None:
    (group,) = groups([summary(one.result()) for one in (SLOW, FAST)])
    marked = {" ".join(column.heading): best(group, column) for column in COLUMNS}
    assert marked["TPOT mean ms"] == {1}
    assert marked["JCT mean s"] == {1}
    assert marked["GPUs "] == frozenset()
    (same,) = groups([summary(SLOW.result())] * 2)
    assert all(not best(same, column) for column in COLUMNS)


def test_rates_have_tables_of_their_own() -> None:
    quick = InventedRun("fast", num_requests=40, rate_scale=2.0)
    assert len(groups([summary(one.result()) for one in (SLOW, FAST, quick)])) == 2


def test_a_policy_on_two_clusters_is_named_with_them() -> None:
    twice = [{"policy": "p", "cluster": "1"}, {"policy": "p", "cluster": "2"}]
    assert labels([*twice, {"policy": "q", "cluster": "1"}]) == ("p (1)", "p (2)", "q")


def test_figures_are_short_and_precise_enough() -> None:
    values = (1234.4, 123.4, 12.34, 1.234, 0.1234, 0.0, 9.999, 99.96)
    shown = [three_digits(value) for value in values]
    assert shown == ["1234", "123", "12.3", "1.23", "0.123", "0.000", "10.0", "100"]


def test_a_run_without_a_figure_has_a_dash() -> None:
    single = InventedRun("none", num_requests=0)
    assert " - " in text_table([summary(single.result())])
