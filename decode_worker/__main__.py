"""python -m decode_worker --model DIR --redis-url URL"""

import sys

from decode_worker.serve import serve
from runtime.process import run_process
from runtime.worker_config import DecodeConfig

if __name__ == "__main__":
    sys.exit(run_process(DecodeConfig, serve))
