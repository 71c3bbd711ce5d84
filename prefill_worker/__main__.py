"""python -m prefill_worker --model DIR --redis-url URL"""

import sys

from prefill_worker.serve import serve
from runtime.process import run_process
from runtime.worker_config import PrefillConfig

if __name__ == "__main__":
    sys.exit(run_process(PrefillConfig, serve))
