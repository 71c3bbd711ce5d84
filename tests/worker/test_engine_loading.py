"""What a model or a machine refuses ends the start with one line."""

import pytest
import torch

from engine.runner import LogitsNotFinite
from runtime.errors import StartupError
from worker.engine_loading import engine_errors_in_one_line


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"), "--max-num-batched-tokens"),
        (LogitsNotFinite((0, 1)), "float32"),
    ],
)
def test_what_loading_runs_into_is_told_in_one_line_with_what_to_do(
    error: Exception, advice: str
) -> None:
    with pytest.raises(StartupError, match=advice) as caught, engine_errors_in_one_line():
        raise error
    assert "\n" not in str(caught.value)
