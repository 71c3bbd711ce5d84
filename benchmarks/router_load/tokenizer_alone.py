"""The tokenizer by itself, on the texts of `large_prompts`; prints one line of JSON a repeat.

    python -m benchmarks.router_load.tokenizer_alone --model DIR [--threads 2 --bytes 400000]

As many threads as the router has tokenise the same text again and again.
"""

import argparse
import json
import threading
import time
from pathlib import Path

from benchmarks.router_load.prompts import text_of
from engine.tokenizer import Tokenizer


def measure(tokenizer: Tokenizer, text: str, num_threads: int, seconds: float) -> dict[str, float]:
    """MB of text a second and CPU seconds a MB, over all threads."""
    counts = [0] * num_threads
    over = threading.Event()

    def work(number: int) -> None:
        while not over.is_set():
            tokenizer.encode(text)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    began_at_s, began_busy_s = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()
    wall_s, busy_s = time.perf_counter() - began_at_s, time.process_time() - began_busy_s
    num_mb = sum(counts) * len(text.encode()) / 1e6
    return {"prompt_mb_s": num_mb / wall_s, "cpu_s_per_prompt_mb": busy_s / num_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=400_000, help="of the text")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_folder(arguments.model, max_chars=arguments.bytes)
    text = text_of(arguments.bytes)
    tokenizer.encode(text)
    for _ in range(arguments.repeats):
        found = measure(tokenizer, text, arguments.threads, arguments.seconds)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
