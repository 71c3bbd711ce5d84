"""Whether a process computes with the compiled kernels.

That depends on what is installed, never on what fails to compile, so that equal machines choose
alike: workers that exchange KV must agree.
"""

from functools import cache
from pathlib import Path
from typing import Literal

from engine.native.library import KernelLibrary, KernelsNotLoaded, find_compiler, load_kernels
from runtime.logging import get_logger

KernelChoice = Literal["auto", "torch", "native"]

log = get_logger()


def choose_kernels(name: KernelChoice = "auto") -> KernelLibrary | None:
    """The kernels; None where torch has to compute what they would.

    Raises: KernelsNotBuilt; KernelsNotLoaded where they are asked for by name.
    """
    compiler = find_compiler()
    if name == "torch" or compiler is None:
        return None
    return load_kernels(compiler) if name == "native" else _load_once(compiler)


def load_or_do_without(compiler: str, cache_folder: Path | None = None) -> KernelLibrary | None:
    """The kernels; None, and one line in the log, where the system does not let them be loaded.

    Raises: KernelsNotBuilt.
    """
    try:
        return load_kernels(compiler, cache_folder)
    except KernelsNotLoaded as error:
        log.warning("kernels_not_loaded", reason=str(error), instead="torch")
        return None


_load_once = cache(load_or_do_without)
