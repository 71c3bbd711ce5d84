"""What a prediction can say, whoever made it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.length_quantiles import OnlineQuantiles
from scheduling.prediction import RequestFeatures, ResponseLength


def features(max_tokens: int = 1000, num_output_tokens: int = 0) -> RequestFeatures:
    return RequestFeatures("t", "standard", 10, max_tokens, num_output_tokens)


@given(st.integers(1, 5000), st.floats(0, 1e7), st.integers(-10, 10**7), st.data())
def test_mean_and_bound_are_moved_to_where_the_answer_can_end(
    max_tokens: int, mean: float, bound: int, data: st.DataObject
) -> None:
    # Where all tokens are there already, the answer has ended: one more than allowed is never said.
    num_output_tokens = data.draw(st.integers(0, max_tokens))
    predicted = ResponseLength.within(features(max_tokens, num_output_tokens), mean, bound)
    assert min(num_output_tokens + 1, max_tokens) <= predicted.mean
    assert predicted.mean <= predicted.bound <= max_tokens


def test_what_can_be_is_left_alone() -> None:
    assert ResponseLength.within(features(), 99.6, 300) == ResponseLength(100, 300)


@pytest.mark.parametrize("num_seen", [20, 100, 300])
@given(data=st.data(), max_tokens=st.integers(1, 600))
def test_the_bound_covers_its_share_of_what_was_seen(
    num_seen: int, data: st.DataObject, max_tokens: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 500), min_size=num_seen, max_size=num_seen))
    predictor = OnlineQuantiles(bound_quantile=0.9, window=1000)
    for length in lengths:
        predictor.observe(features(), length)
    predicted = predictor.predict(features(max_tokens))
    covered = sum(min(length, max_tokens) <= predicted.bound for length in lengths)
    assert covered >= 0.9 * len(lengths)
