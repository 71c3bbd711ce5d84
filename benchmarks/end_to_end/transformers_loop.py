"""transformers' own generate on the same loads; run as a process of its own.

Prints one JSON line a batch size: a batch is all clients at once, all prompts of one length.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--answer", type=int, required=True)
    parser.add_argument("--batch", type=int, nargs="+", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model.eval()

    @torch.inference_mode()
    def seconds(batch: int, num_output: int) -> float:
        prompts = torch.randint(3, model.config.vocab_size, (batch, args.prompt))
        started = time.perf_counter()
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=num_output,
            min_new_tokens=num_output,
            do_sample=False,
        )
        return time.perf_counter() - started

    for batch in args.batch:
        seconds(batch, 2)
        first = seconds(batch, 1)
        whole = seconds(batch, args.answer)
        step = (whole - first) / (args.answer - 1)
        print(json.dumps({"batch": batch, "first_s": first, "whole_s": whole, "step_s": step}))


if __name__ == "__main__":
    main()
