"""Where no two workers fit, a caller hears in what they differ."""

import pytest

from router.pairing_text import closest_difference
from router.testing import CoreUnderTest, hello_of, spec_of
from scheduling.errors import NoWorkerAvailable
from scheduling.messages import WorkerHello

COMMON = ("weights=w1", "dtype=bfloat16", "KV dtype=bfloat16", "head size=64", "block size=16")


def worker(name: str, **traits: str) -> WorkerHello:
    own = dict(trait.split("=") for trait in COMMON) | {
        key.replace("_", " "): value for key, value in traits.items()
    }
    told = tuple(f"{key}={value}" for key, value in own.items())
    return hello_of(name, compatibility=repr(told), traits=told)


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"dtype": "float32"}, "dtype bfloat16 and float32"),
        ({"KV_dtype": "fp8_e4m3"}, "KV dtype bfloat16 and fp8_e4m3"),
        ({"head_size": "128"}, "head size 64 and 128"),
        ({"block_size": "32"}, "block size 16 and 32"),
        ({"KV_slices": "2"}, "KV slices unknown and 2"),
        (
            {"head_size": "128", "block_size": "32"},
            "head size 64 and 128, block size 16 and 32",
        ),
    ],
)
def test_a_pair_that_exchanges_no_kv_is_refused_with_both_values(
    traits: dict[str, str], said: str
) -> None:
    core = CoreUnderTest(workers=(worker("prefill-0"), worker("decode-0", **traits)))
    with pytest.raises(NoWorkerAvailable) as refused:
        core.ask(spec_of())
    assert f"no two are compatible: prefill-0 and decode-0 have {said};" in str(refused.value)
    assert "tandem admin workers" in str(refused.value)


def test_of_many_pairs_the_two_that_are_most_alike_are_named() -> None:
    far = worker("decode-0", weights="w2", dtype="a", head_size="1", block_size="2")
    near = worker("decode-1", block_size="32")
    assert closest_difference([worker("prefill-0")], [far, near]) == (
        "prefill-0 and decode-1 have block size 16 and 32"
    )
    assert closest_difference([worker("prefill-0")], [far]) == (
        "prefill-0 and decode-0 have weights w1 and w2, dtype bfloat16 and a, head size 64 and 1 "
        "and 1 more"
    )


def test_a_worker_of_an_earlier_release_is_named() -> None:
    # As where workers are replaced one after the other.
    silent = hello_of("decode-0", compatibility="other")
    said = "decode-0 is of an earlier release, which does not say what it has"
    assert closest_difference([worker("prefill-0")], [silent]) == said
    earlier = [hello_of(f"prefill-{number}", compatibility="third") for number in range(9)]
    assert closest_difference(earlier, [worker("decode-0")]) == (
        "prefill-0, prefill-1, prefill-2 and 6 more are of an earlier release, which does not say "
        "what it has"
    )
    core = CoreUnderTest(workers=(worker("prefill-0"), silent))
    with pytest.raises(NoWorkerAvailable, match=f"no two are compatible: {said}; .*one release"):
        core.ask(spec_of())


def test_where_some_tell_something_these_are_named_beside_earlier_ones() -> None:
    silent = hello_of("decode-1", compatibility="other")
    told = closest_difference([worker("prefill-0")], [silent, worker("decode-0", dtype="a")])
    assert told == "prefill-0 and decode-0 have dtype bfloat16 and a"


def test_what_differs_is_cut_to_what_an_error_has_room_for() -> None:
    other = worker("decode-0", dtype="y" * 400)
    told = closest_difference([worker("prefill-0", dtype="x" * 400)], [other])
    assert told is not None
    assert len(told) < 400
    assert "xxx... and yyy" in told


def test_two_that_have_the_same_and_differ_all_the_same_are_not_explained() -> None:
    one, other = worker("prefill-0"), worker("decode-0")
    assert closest_difference([one], [other]) is None
