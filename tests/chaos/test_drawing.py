"""Plans are values: the same seed gives the same plan, and what it asks can be answered."""

from dataclasses import replace

import pytest

from deploy.chaos.drawing import HARM, LONG, MODELS, SHORT, Size, draw_plan


@pytest.mark.parametrize("size", [SHORT, LONG])
def test_the_same_seed_gives_the_same_plan_and_another_seed_another(size: Size) -> None:
    assert draw_plan(7, size) == draw_plan(7, size)
    assert draw_plan(7, size).asks != draw_plan(8, size).asks


def test_seeds_in_a_row_take_every_model() -> None:
    assert {draw_plan(seed, SHORT).setting.model for seed in range(len(MODELS))} == set(MODELS)


@pytest.mark.parametrize("seed", range(40))
def test_every_request_fits_every_worker_and_every_harm_comes_once_before_any_comes_again(
    seed: int,
) -> None:
    plan = draw_plan(seed, LONG)
    setting = plan.setting
    longest = max(len(ask.prompt) + ask.max_tokens for ask in plan.asks)
    assert longest <= 16 * min(setting.num_prefill_blocks, setting.num_decode_blocks)
    assert all(len(ask.prompt) + ask.max_tokens < 512 for ask in plan.asks)
    moments = [strike.at_fraction for strike in plan.strikes]
    assert moments == sorted(moments)
    assert moments[-1] <= 0.8, "the last one is reached, too"
    victims = {*setting.workers, "router-0", "router-1", "redis"}
    assert {strike.victim for strike in plan.strikes} <= victims
    first = [(each.kind, each.victim.partition("-")[0]) for each in plan.strikes[: len(HARM)]]
    assert sorted(first) == sorted(HARM)


def test_a_machine_with_nixl_draws_it_in_some_rounds_and_everything_else_alike() -> None:
    ways = set()
    for seed in range(40):
        without, with_it = draw_plan(seed, SHORT), draw_plan(seed, SHORT, has_nixl=True)
        ways.add(with_it.setting.transports)
        alike = replace(with_it.setting, transports=without.setting.transports)
        assert replace(with_it, setting=alike) == without
    assert {"nixl", "nixl,tcp", "shared_memory", "tcp"} <= ways


def test_the_plan_can_be_shown_without_a_prompt() -> None:
    plan = draw_plan(3, SHORT)
    told = "\n".join(plan.lines())
    assert "chaos seed 3" in told
    assert str(plan.asks[0].prompt) not in told
    assert all(strike.line() in told for strike in plan.strikes)
