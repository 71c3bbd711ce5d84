"""python -m worker.preflight_process prefill|decode [settings]: can a worker have what it wants?

0: its device is there, and what its transports and its attention need. 2: one line on stderr says
what is missing. Asked before a worker is started, of what only a library can tell; nothing is left
of the library in whoever asks.
"""

import sys
from collections.abc import Sequence

from runtime.config import load_config
from runtime.errors import ConfigError, StartupError
from runtime.worker_config import DecodeConfig, PrefillConfig, WorkerConfig

_CONFIGS: dict[str, type[WorkerConfig]] = {"prefill": PrefillConfig, "decode": DecodeConfig}


def require_available(config: WorkerConfig) -> None:
    """Raises: StartupError."""
    # The libraries are loaded here and not above: it takes seconds.
    from engine.attention.choice import require_flashinfer
    from engine.loading import checked_device
    from engine.models.row_kernels_choice import require_row_kernels
    from worker.engine_loading import device_of_rank, engine_errors_in_one_line
    from worker.transports import transports_of

    with engine_errors_in_one_line():
        for rank in range(config.tensor_parallel_size):
            device = checked_device(device_of_rank(config.device, rank))
            if config.attention == "flashinfer":
                require_flashinfer(device)
            if config.row_kernels == "flashinfer":
                require_row_kernels(device)
    for rank in range(config.tensor_parallel_size):
        transports_of(config, rank)


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    try:
        require_available(load_config(_CONFIGS[argv[0]], argv[1:]))
    except StartupError as error:
        sys.stderr.write(f"{' '.join(error.message.split())}\n")
        return ConfigError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
