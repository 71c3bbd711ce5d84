"""Policies with one mechanism taken away, and which way each should go by its paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.scheduling.measuring import Subject
from scheduling.admission import FuturePeak, WhatIsReserved
from scheduling.batch_time_recovery import Preemption
from scheduling.dynamic_chunk import ChunkSettings, IterationGoal
from scheduling.policies import POLICIES
from scheduling.policy import (
    ArrivalOrder,
    Batching,
    BlockAllocation,
    Policy,
    Sharing,
)
from scheduling.victims import CheapestToRecompute, LastArrived


@dataclass(frozen=True, slots=True)
class Expected:
    """A figure of `ablation_report`, and whether it is higher without the mechanism."""

    figure: str
    is_higher_without: bool
    # Where it is published.
    source: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One policy without one mechanism."""

    base: str
    # What is gone, and what stands in its place.
    without: str
    subject: Subject
    expected: tuple[Expected, ...] = ()


# EcoServe's paper had a predictor of its own, which is not published: this one is told, to 20 %.
_TOLD = "ecoserve told lengths"
_BASES: Mapping[str, Policy] = {
    **POLICIES,
    _TOLD: replace(POLICIES["ecoserve"], name=_TOLD, predictor="noisy-oracle:0.2"),
}


def _without(
    base: str,
    without: str,
    *expected: Expected,
    prefix_caching: bool = True,
    **changes: Any,
) -> Variant:
    name = f"{base} - {without}"
    policy = replace(_BASES[base], name=name, **changes)
    return Variant(base, without, Subject(name, policy, prefix_caching), expected)


def _higher(figure: str, source: str) -> Expected:
    return Expected(figure, True, source)


def _lower(figure: str, source: str) -> Expected:
    return Expected(figure, False, source)


_GOODPUT = "goodput"
_ECO, _ECO_SHARE = "EcoServe, ablation", "EcoServe, KVC pipelining"
_CHUNKS = POLICIES["accelgen"].chunks
_CACHE, _ACCEL = "CacheOPT, abstract: each of five levers helps", "AccelGen, ablation"
# The last arrived makes room as soon as anybody lacks a block, is computed again, and comes back
# with as little as anybody.
_FCFS = POLICIES["fcfs"]
_ROOM_AS_FCFS: dict[str, Any] = {
    "victims": _FCFS.victims,
    "is_preempting_eagerly": _FCFS.is_preempting_eagerly,
    "preemption": _FCFS.preemption,
    "reserves_more_again": _FCFS.reserves_more_again,
}

_ALL: tuple[Variant, ...] = (
    _without("default", "deadline order: arrival", ordering=ArrivalOrder()),
    # A worker still orders what it has; see DeadlineFill.
    _without("default", "triage of late prompts", late_yields=False),
    _without("default", "passes by deadline: plain chunks", batching=Batching.FILL),
    _without(
        "default",
        "peak admission: blocks as fcfs",
        admission=WhatIsReserved(),
        allocation=BlockAllocation(),
    ),
    _without("default", "more than the predicted peak: the peak", admission=FuturePeak()),
    _without(
        "default",
        "who makes room: the shortest, when nobody can go on",
        victims=CheapestToRecompute(),
        is_preempting_eagerly=False,
    ),
    _without("default", "who makes room, and how: as fcfs", **_ROOM_AS_FCFS),
    _without(
        "default",
        "all rules of memory: as fcfs",
        allocation=BlockAllocation(),
        admission=WhatIsReserved(),
        growth_reserve=_FCFS.growth_reserve,
        **_ROOM_AS_FCFS,
    ),
    _without("default", "newcomers before parked answers", parked_yields=False),
    _without("default", "prefix caching", prefix_caching=False),
    _without("default", "length prediction: longest allowed", predictor="max-tokens"),
    _without(
        "ecoserve",
        "groups of equal length",
        _higher("cpu time", _ECO),
        is_grouping=False,
    ),
    _without(
        "ecoserve",
        "pipelining",
        _lower("running", _ECO),
        _lower("KVC written", _ECO_SHARE),
        sharing=Sharing.NONE,
    ),
    _without(
        "ecoserve",
        "decoupling",
        _lower("forward size", _ECO),
        is_decoupled=False,
    ),
    _without(
        "ecoserve",
        "ordering: arrival",
        _lower("attainment", _ECO),
        _higher("wait with KV", _ECO),
        ordering=ArrivalOrder(),
    ),
    _without("ecoserve", "reserve", growth_reserve=0.0),
    _without("ecoserve", "waiting in line again: in the batch", outgrown_waits_again=False),
    _without(_TOLD, "groups of equal length", _higher("cpu time", _ECO), is_grouping=False),
    _without(
        _TOLD,
        "pipelining",
        _lower("running", _ECO),
        _lower("KVC written", _ECO_SHARE),
        sharing=Sharing.NONE,
    ),
    _without(_TOLD, "decoupling", _lower("forward size", _ECO), is_decoupled=False),
    _without("cacheopt", "confidence bound: mean", _lower(_GOODPUT, _CACHE), bound="mean"),
    _without("cacheopt", "confidence bound: quantile", _lower(_GOODPUT, _CACHE), bound=None),
    _without("cacheopt", "embedding", _lower(_GOODPUT, _CACHE), sharing=Sharing.NONE),
    _without("cacheopt", "cut: room for all of the answer", least_share=1.0),
    _without(
        "cacheopt",
        "proactive allocation and reserve",
        _higher("preemptions", "CacheOPT, proactive allocation"),
        is_growing_ahead=False,
        growth_reserve=0.0,
    ),
    _without(
        "cacheopt",
        "victim rule: last arrived",
        _lower("attainment", _CACHE),
        victims=LastArrived(),
    ),
    _without(
        "cacheopt",
        "cheaper way back: always recompute",
        _higher("JCT", _CACHE),
        preemption=Preemption.RECOMPUTE,
    ),
    _without(
        "cacheopt",
        "cheaper way back: always swap",
        _higher("JCT", _CACHE),
        preemption=Preemption.FIRST,
    ),
    _without(
        "accelgen",
        "dynamic chunk: as large as an iteration may be",
        _lower(_GOODPUT, _ACCEL),
        chunks=ChunkSettings(goal=IterationGoal.NONE),
    ),
    _without(
        "accelgen",
        "dynamic chunk: 512 tokens",
        _lower(_GOODPUT, _ACCEL),
        chunks=ChunkSettings(goal=IterationGoal.NONE, max_tokens=512),
    ),
    _without(
        "accelgen",
        "slack order: arrival",
        _lower(_GOODPUT, _ACCEL),
        _lower("attainment", _ACCEL),
        ordering=ArrivalOrder(),
        chunks=replace(_CHUNKS, is_by_slack=False),
    ),
    _without(
        "accelgen",
        "two-resource fit: first fit",
        _lower(_GOODPUT, _ACCEL),
        chunks=replace(_CHUNKS, gamma_s=0.0),
    ),
    _without(
        "accelgen",
        "one long prompt at a time",
        chunks=replace(_CHUNKS, is_cutting_one=False),
    ),
    _without("accelgen", "room for urgent prompts", urgent_preempts=False),
)


def _is_other(variant: Variant) -> bool:
    """A policy that does not have the mechanism is not measured without it."""
    plain = replace(variant.subject.policy, name=variant.base)
    return plain != _BASES[variant.base] or not variant.subject.prefix_caching


VARIANTS = tuple(variant for variant in _ALL if _is_other(variant))
BASES = tuple(dict.fromkeys(variant.base for variant in VARIANTS))


def subjects_of(bases: Sequence[str]) -> list[Subject]:
    """Each policy, followed by itself without each of its mechanisms."""
    found: list[Subject] = []
    for base in bases:
        found.append(Subject(base, _BASES[base]))
        found += [variant.subject for variant in VARIANTS if variant.base == base]
    return found
