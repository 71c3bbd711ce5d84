"""What is packed for a GPU machine that can fetch nothing."""

import pytest

from tools.compile_kernels import Kernel
from tools.gpu_bundle import KERNELS, PINNED, wheel_names


def test_every_wheel_is_of_one_version_that_the_tests_run_with() -> None:
    names = wheel_names()
    assert len(names) == len(set(names))
    pinned = [name for name in names if name.split("==")[0] in PINNED]
    assert len(pinned) == len(PINNED)
    assert all("==" in name for name in pinned)


def test_the_kernels_are_those_of_an_8b_model_and_of_the_tests_of_attention() -> None:
    kernels = {Kernel.parse(text) for text in KERNELS}
    assert Kernel("bfloat16", "bfloat16", 128, "full") in kernels
    assert {kernel.kind for kernel in kernels if kernel.head_dim == 64} == {
        "full",
        "window",
        "softcap",
    }


@pytest.mark.parametrize("text", ["", "bfloat16/128/full", "float32/float32/64/full", "a/b/c/d"])
def test_a_kernel_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is"):
        Kernel.parse(text)
