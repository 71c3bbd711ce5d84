"""python -m router --model DIR --redis-url URL [--port 7700]"""

import sys

from router.serve import serve
from runtime.config import RouterConfig
from runtime.process import run_process

if __name__ == "__main__":
    sys.exit(run_process(RouterConfig, serve))
