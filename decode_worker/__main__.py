"""python -m decode_worker --model DIR --redis-url URL"""

import sys

from decode_worker.serve import serve
from runtime.config import DecodeConfig
from runtime.process import run_process

if __name__ == "__main__":
    sys.exit(run_process(DecodeConfig, serve))
