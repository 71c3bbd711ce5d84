"""The search for the smallest cluster, against systems that are functions of the cluster."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster_search import (
    Assessment,
    ClusterSearch,
    FoundCluster,
    Shape,
    smallest_cluster,
)
from simulator.cluster_spec import ClusterSpec

Assess = Callable[[ClusterSpec], Assessment]


def needs(num_prefill: float, num_decode: float) -> Assess:
    """Two stages; a mixed worker is worth half a worker of each, and what is scarcest decides."""

    def assess(spec: ClusterSpec) -> Assessment:
        prefill = (spec.num_prefill + spec.num_mixed / 2) / num_prefill
        decode = (spec.num_decode + spec.num_mixed / 2) / num_decode
        return Assessment(min(1.0, prefill, decode), prefill < decode)

    return assess


def smallest_split(num_prefill: float, num_decode: float, target: float) -> int:
    """By trying all of them."""
    assess = needs(num_prefill, num_decode)
    return next(
        size
        for size in range(2, 1000)
        for prefill in range(1, size)
        if assess(ClusterSpec(prefill, size - prefill)).attainment >= target
    )


def size_of(found: FoundCluster) -> int:
    assert found.best is not None
    assert not found.is_cut_short
    return found.best.num_workers


@given(st.integers(1, 60), st.floats(0.5, 100))
def test_the_smallest_number_of_mixed_workers_is_found(needed: int, demand: float) -> None:
    search = ClusterSearch(prefill_demand=demand, decode_demand=0.0)
    found = smallest_cluster(
        lambda spec: Assessment(float(spec.num_mixed >= needed), False), Shape.MIXED, search
    )
    assert size_of(found) == needed
    assert len(found.assessed) <= 20


@given(st.floats(0.6, 15), st.floats(0.6, 15), st.floats(0.3, 3))
def test_the_best_ratio_of_prefill_to_decode_is_found(
    num_prefill: float, num_decode: float, error: float
) -> None:
    search = ClusterSearch(
        prefill_demand=error * num_prefill, decode_demand=num_decode / error, max_runs=500
    )
    found = smallest_cluster(needs(num_prefill, num_decode), Shape.SPLIT, search)
    assert size_of(found) == smallest_split(num_prefill, num_decode, search.target)


def test_a_ratio_is_found_with_far_fewer_runs_than_there_are_clusters() -> None:
    search = ClusterSearch(prefill_demand=10.0, decode_demand=10.0)
    found = smallest_cluster(needs(5.0, 21.0), Shape.SPLIT, search)
    assert size_of(found) == smallest_split(5.0, 21.0, search.target)
    assert len(found.assessed) <= 30


def test_all_roles_together_are_taken_where_they_save_a_worker() -> None:
    def assess(spec: ClusterSpec) -> Assessment:
        is_hybrid = spec.num_mixed and spec.num_prefill
        return Assessment(spec.num_workers / (6 if is_hybrid else 9), False)

    found = smallest_cluster(assess, Shape.ANY, ClusterSearch())
    assert found.best is not None
    assert found.best.num_workers == 6
    assert found.best.num_mixed
    assert found.best.num_prefill


def test_sizes_around_the_smallest_are_looked_at_for_the_curve() -> None:
    found = smallest_cluster(needs(3.0, 5.0), Shape.MIXED, ClusterSearch())
    size = size_of(found)
    assert {spec.num_workers for spec, _ in found.assessed} >= set(range(size - 2, size + 3))


def test_nothing_is_found_where_nothing_serves() -> None:
    found = smallest_cluster(needs(50.0, 50.0), Shape.SPLIT, ClusterSearch(max_workers=8))
    assert found.best is None
    assert max(spec.num_workers for spec, _ in found.assessed) == 8


@pytest.mark.parametrize("shape", Shape)
def test_no_more_runs_are_taken_than_allowed(shape: Shape) -> None:
    found = smallest_cluster(needs(20.0, 20.0), shape, ClusterSearch(max_runs=3))
    assert found.is_cut_short
    assert len(found.assessed) == 3


def test_no_cluster_is_assessed_twice() -> None:
    found = smallest_cluster(needs(7.0, 9.0), Shape.ANY, ClusterSearch())
    specs = [spec for spec, _ in found.assessed]
    assert len(set(specs)) == len(specs)
