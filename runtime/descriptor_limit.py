"""How many files and connections this process may have open: as many as it is allowed to ask for.

Systems give 1024 by default, and each client connection takes one.
"""

import resource

from runtime.logging import get_logger

log = get_logger()

# More than any process here needs; some systems allow numbers that others' tables do not hold.
_WANTED = 65_536
_FEW = 4096


def raise_descriptor_limit() -> int:
    """Raise the limit as far as the system lets us, and say so where that is little."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = _WANTED if hard == unlimited else min(hard, _WANTED)
    if soft != unlimited and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError) as error:
            log.warning("descriptor_limit_kept", limit=soft, problem=str(error))
    if soft != unlimited and soft < _FEW:
        log.warning(
            "few_descriptors",
            limit=soft,
            advice="each connection takes one; raise the hard limit with `ulimit -Hn`",
        )
    return soft
