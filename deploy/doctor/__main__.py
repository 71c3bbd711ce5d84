"""python -m deploy.doctor [options]

0: KV has a way between all places. 1: between some it has none, or workers do not start with
the transports that were named. 2: wrong usage. 130: interrupted.
"""

import os
import sys

from deploy.doctor.command import main
from kvtransfer import nccl_settings
from runtime.logging import configure_logging

if __name__ == "__main__":
    # The processes that it starts inherit them.
    nccl_settings.prepare_process()
    # It says how it was started, for each way, among our lines; a user's setting wins.
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")  # noqa: TID251  it has no other switch
    configure_logging("doctor", level="error")
    sys.exit(main(sys.argv[1:]))
