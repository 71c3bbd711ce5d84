"""Trains the bundled model: `python -m engine.bundled.train --out DIR`.

Gets the text, trains a tokenizer and a network of about two million parameters on the CPU, and
writes a Hugging Face folder. Progress goes to stderr, the report to stdout. With the same text,
seed, steps and threads a run repeats itself on one machine; another processor rounds differently.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from engine.bundled.corpus import build_corpus
from engine.bundled.folder import write_model
from engine.bundled.measurement import measure
from engine.bundled.network import NetworkShape, TrainingNetwork
from engine.bundled.optimisation import TrainingDiverged, TrainingPlan, train
from engine.bundled.source_text import SourceText, TextUnavailable, download, read
from engine.bundled.token_stream import TokenStream, encode_corpus
from engine.bundled.vocabulary import train_tokenizer
from runtime.clock import MonotonicClock

DEFAULT_MINUTES = 7.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 without text, or when the loss diverges."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = TrainingPlan(options.steps, options.minutes, use_compile=options.compile)
    try:
        text = _text(options.text)
        report = train_bundled_model(text, NetworkShape(), plan, options.seed, options.out)
    except (TextUnavailable, TrainingDiverged) as error:
        _progress(str(error))
        return 1
    print(json.dumps(report, indent=2))
    return 0


def train_bundled_model(
    text: SourceText, shape: NetworkShape, plan: TrainingPlan, seed: int, out: Path
) -> dict[str, object]:
    """Train on `text` and write the folder `out`; returns what was measured.

    Raises: TextUnavailable when the text holds too little prose.
    """
    torch.manual_seed(seed)
    corpus = build_corpus(text.source_by_path)
    if not corpus.passages or not corpus.exchanges:
        raise TextUnavailable("the reST files hold no prose")
    _progress(
        f"{len(corpus.passages)} passages, {len(corpus.held_out_passages)} held out, "
        f"{len(corpus.exchanges)} questions"
    )
    tokenizer = train_tokenizer(corpus.training_texts(), shape.vocab_size)
    stream = TokenStream(encode_corpus(corpus, tokenizer), seed)
    network = TrainingNetwork(shape)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    _progress(f"{num_parameters} parameters; the first step waits for the compiler")
    result = train(network, stream, plan, MonotonicClock(), _progress)
    # A text too small to hold anything out is measured on itself; the report says so.
    unseen = corpus.held_out_passages or corpus.passages
    measured = measure(network, tokenizer, unseen)
    report: dict[str, object] = {
        "seed": seed,
        "num_parameters": num_parameters,
        "num_training_characters": sum(len(each) for each in corpus.training_texts()),
        "num_validation_characters": sum(len(each) for each in corpus.held_out_passages),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **asdict(result),
        **asdict(measured),
    }
    write_model(network, tokenizer, out, report=report, licence=text.licence)
    return report


def _text(folder: Path | None) -> SourceText:
    if folder is not None:
        return read(folder)
    with tempfile.TemporaryDirectory(prefix="bundled-text-") as scratch:
        _progress("downloading the text")
        return read(download(Path(scratch)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.bundled.train", description="Train the bundled model."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--text", type=Path, help="folder of reST files (default: download)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    length.add_argument("--steps", type=int, help="exact length, to repeat a run")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
