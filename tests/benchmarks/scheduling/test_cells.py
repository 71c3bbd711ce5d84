from benchmarks.scheduling.cells import HARDWARE, TRACES, in_order, pairs


def test_every_trace_meets_every_hardware_once() -> None:
    found = pairs(TRACES, HARDWARE)
    assert len(found) == len(set(found)) == len(TRACES) * len(HARDWARE)


def test_an_unfinished_run_has_seen_as_many_traces_as_it_had_time_for() -> None:
    begun = pairs(TRACES, HARDWARE)[: len(TRACES)]
    assert {pair.trace for pair in begun} == set(TRACES)
    assert {pair.hardware for pair in begun} == set(HARDWARE)


def test_the_reference_is_measured_first_even_where_nobody_asked_for_it() -> None:
    assert in_order(["tgi", "default"]) == ["fcfs", "default", "tgi"]


def test_a_policy_that_nobody_put_in_order_comes_last() -> None:
    assert in_order(["newest", "oracle"]) == ["fcfs", "oracle", "newest"]


def test_traces_are_named_without_their_suffixes() -> None:
    assert TRACES[0].stem == "azure_2023_conv"
