"""A plan from a seed. Pure: the same seed and size give the same plan on every machine."""

import random
from dataclasses import dataclass, replace

from deploy.chaos.plan import REDIS, Ask, ChaosPlan, Fate, Kind, Setting, Strike
from engine.families_testing import FAMILIES
from scheduling.sampling import SamplingParams

MODELS = ("bundled", *FAMILIES)
# Everything that can happen, and to whom.
HARM: tuple[tuple[Kind, str], ...] = (
    ("kill", "prefill"),
    ("kill", "decode"),
    ("kill", "router"),
    ("kill", REDIS),
    ("freeze", "prefill"),
    ("freeze", "decode"),
    ("freeze", "router"),
    ("freeze", REDIS),
    ("drain", "prefill"),
    ("drain", "decode"),
    ("drain", "router"),
    ("cordon", "prefill"),
    ("cordon", "decode"),
    ("evacuate", "prefill"),
    ("evacuate", "decode"),
)
NUM_CLIENTS = 4
NUM_ROUTERS = 2
# Silence after which a worker counts as lost; strikes are drawn around it.
HEARTBEAT_TIMEOUT_S = 1.5
_FATES: tuple[Fate, ...] = ("finish",) * 12 + ("cancel", "leave", "operator", "deadline")
# In every vocabulary, and no special token.
_TOKEN_IDS = range(3, 320)
_MAX_PROMPT, _MAX_OUTPUT = 160, 80
# Of the rounds, where it is installed.
_NIXL_FRACTION = 0.3
# Of the rounds: decode workers compute prompts as well.
_MIXED_FRACTION = 0.4
# Of these: answers take turns.
_TURNS_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class Size:
    """How much happens in a round."""

    num_requests: int
    num_at_once: int
    num_strikes: int


SHORT = Size(num_requests=36, num_at_once=24, num_strikes=15)
LONG = Size(num_requests=300, num_at_once=32, num_strikes=30)
SIZES = {"short": SHORT, "long": LONG}


def draw_plan(seed: int, size: Size, *, has_nixl: bool = False) -> ChaosPlan:
    """Everything that a round will do; `has_nixl` when this machine has that way for KV, too."""
    # Hashed in one stable way whatever Python's own hash does.
    rng = random.Random(f"chaos {seed}")
    setting = _draw_setting(rng, MODELS[seed % len(MODELS)])
    # Dice of its own: all else in the round is the same on a machine without it.
    dice = random.Random(f"chaos transports {seed}")
    if has_nixl and dice.random() < _NIXL_FRACTION:
        setting = replace(setting, transports=dice.choice(("nixl", "nixl,tcp")))
    # And its own for what came later, so that an older seed's round stays nearly the same.
    dice = random.Random(f"chaos mixed workers {seed}")
    if dice.random() < _MIXED_FRACTION:
        policy = dice.choice((setting.policy, "ecoserve", "sarathi", "tgi", "accelgen", "cacheopt"))
        setting = replace(setting, decode_role="mixed", policy=policy)
        if random.Random(f"chaos turns {seed}").random() < _TURNS_FRACTION:
            setting = replace(setting, policy="fastserve")
    stems = [_draw_tokens(rng, rng.randint(20, 120)) for _ in range(5)]
    asks = tuple(_draw_ask(rng, number, stems) for number in range(size.num_requests))
    strikes = _draw_strikes(rng, setting, size.num_strikes)
    return ChaosPlan(seed, setting, size.num_at_once, asks, strikes)


def _draw_setting(rng: random.Random, model: str) -> Setting:
    return Setting(
        model=model,
        policy=rng.choice(("default", "fcfs")),
        transports=rng.choice(("shared_memory", "tcp", "shared_memory,tcp")),
        num_prefill=2,
        num_decode=rng.choice((2, 2, 3)),
        # The longest request needs 15; a few times that makes everybody fight for room.
        num_prefill_blocks=rng.choice((20, 32, 64)),
        num_decode_blocks=rng.choice((16, 20, 32)),
        max_num_batched_tokens=rng.choice((32, 64)),
        preemption=rng.choice(("auto", "swap", "recompute")),
        swap_mib=rng.choice((1, 64)),
        max_retries_per_task=rng.choice((3, 100)),
    )


def _draw_ask(rng: random.Random, number: int, stems: list[tuple[int, ...]]) -> Ask:
    fate = rng.choice(_FATES)
    # Many short answers and a few long ones: the router predicts too little, and they must grow.
    max_tokens = rng.choice((rng.randint(1, 12), rng.randint(1, 40), _MAX_OUTPUT))
    num_choices = rng.choice((1, 1, 1, 1, 1, 2, 3, 4))
    has_stop = rng.random() < 0.2
    return Ask(
        number=number,
        prompt=_draw_prompt(rng, stems),
        max_tokens=max_tokens,
        num_choices=num_choices,
        sampling=_draw_sampling(rng, max_tokens),
        ignore_eos=rng.random() < 0.8,
        stop_at=rng.uniform(0.2, 0.9) if has_stop else None,
        num_stop_chars=rng.randint(1, 6),
        fate=fate,
        after_tokens=rng.randint(0, max_tokens * num_choices),
        deadline_s=rng.uniform(0.005, 3.0),
        pause_s=rng.choice((0.0,) * 9 + (0.05,)),
        client=rng.randrange(NUM_CLIENTS),
    )


def _draw_prompt(rng: random.Random, stems: list[tuple[int, ...]]) -> tuple[int, ...]:
    """New, or with a beginning that others have, or the very same as others."""
    if rng.random() < 0.3:
        return _draw_tokens(rng, rng.choice((1, 2, 15, 16, 17, 33, 64, 100, _MAX_PROMPT)))
    stem = rng.choice(stems)
    if rng.random() < 0.3:
        return stem
    # Also cut short of a whole block.
    return stem[: rng.randint(1, len(stem))] + _draw_tokens(rng, rng.randint(1, 40))


def _draw_tokens(rng: random.Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(rng.choices(_TOKEN_IDS, k=num_tokens))


def _draw_sampling(rng: random.Random, max_tokens: int) -> SamplingParams:
    """Numbers are multiples of 1/64: exact in the 32 bits in which they travel."""
    num_logprobs = rng.choice((None, None, None, 0, 3))
    num_prompt_logprobs = rng.choice((None,) * 8 + (0, 2))
    if rng.random() < 0.4:
        return SamplingParams(
            temperature=0.0,
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
            repetition_penalty=rng.choice((1.0, 1.0, 1.25)),
        )
    biased = rng.sample(_TOKEN_IDS, 2)
    return SamplingParams(
        temperature=rng.choice((0.5, 0.75, 1.0, 1.5)),
        top_k=rng.choice((0, 0, 20, 60)),
        top_p=rng.choice((1.0, 0.75, 0.9375)),
        seed=rng.randrange(2**64),
        num_logprobs=num_logprobs,
        min_p=rng.choice((0.0, 0.0, 0.0625)),
        repetition_penalty=rng.choice((1.0, 1.25)),
        presence_penalty=rng.choice((0.0, 0.5)),
        frequency_penalty=rng.choice((0.0, 0.25)),
        logit_bias=rng.choice(((), ((biased[0], -100.0), (biased[1], 2.0)))),
        min_tokens=rng.choice((0, 0, rng.randint(0, max_tokens))),
        num_prompt_logprobs=num_prompt_logprobs,
    )


def _draw_strikes(rng: random.Random, setting: Setting, num_strikes: int) -> tuple[Strike, ...]:
    """Every harm once before any comes again, spread over most of the load."""
    harm = [
        each for _ in range(1 + num_strikes // len(HARM)) for each in rng.sample(HARM, len(HARM))
    ]
    moments = sorted(rng.uniform(0.04, 0.8) for _ in range(num_strikes))
    return tuple(
        _draw_strike(rng, setting, moment, kind, role)
        for moment, (kind, role) in zip(moments, harm, strict=False)
    )


def _draw_strike(
    rng: random.Random, setting: Setting, at_fraction: float, kind: Kind, role: str
) -> Strike:
    counts = {"prefill": setting.num_prefill, "decode": setting.num_decode, "router": NUM_ROUTERS}
    victim = role if role == REDIS else f"{role}-{rng.randrange(counts[role])}"
    if kind == "freeze":
        # Unnoticed, nearly noticed, noticed, and longer than a lease.
        lasts_s = HEARTBEAT_TIMEOUT_S * rng.choice((0.2, 0.9, 1.5, 2.5))
    else:
        lasts_s = rng.choice((0.0, 0.5, 1.5))
    return Strike(at_fraction, kind, victim, lasts_s)
