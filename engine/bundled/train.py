"""Trains the bundled model: `python -m engine.bundled.train --out DIR`.

Gets the text, trains a tokenizer and a network of about two million parameters on the CPU, first on
everything, then on the questions asked most, and writes a Hugging Face folder. Progress goes to
stderr, the report to stdout. With the same text, seed, steps and threads a run repeats itself on
one machine; another processor rounds differently.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from engine.bundled.corpus import build_corpus, frequent_words
from engine.bundled.folder import REPORT_FILE, TOKENIZER_FILE, WEIGHTS_FILE, write_model
from engine.bundled.measurement import measure
from engine.bundled.network import NetworkShape, TrainingNetwork
from engine.bundled.optimisation import TrainingDiverged, TrainingPlan, train
from engine.bundled.source_text import SourceText, TextUnavailable, download, read
from engine.bundled.token_stream import EncodedCorpus, TokenStream, chat_corpus, encode_corpus
from engine.bundled.vocabulary import train_tokenizer
from runtime.clock import MonotonicClock

# The second phase: what is asked this often per pass of the first, gently.
MIN_CHAT_WEIGHT = 4.0
CHAT_PEAK_LEARNING_RATE = 2e-3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 without text, or when the loss diverges."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(
        seed=options.seed,
        plan=TrainingPlan(options.steps, options.minutes, use_compile=options.compile),
        num_chat_steps=options.chat_steps,
        start_from=options.start_from,
    )
    try:
        report = train_bundled_model(_text(options.text), NetworkShape(), run, options.out)
    except (TextUnavailable, TrainingDiverged, StartUnusable) as error:
        _progress(str(error))
        return 1
    print(json.dumps(report, indent=2))
    return 0


class StartUnusable(Exception):
    """The folder given with --start-from cannot be continued."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder}: {problem}; give a folder that this command wrote")
        self.folder = folder


@dataclass(frozen=True, slots=True)
class Run:
    """What the command line asks for."""

    seed: int
    plan: TrainingPlan
    num_chat_steps: int
    # The result of an earlier run, whose first phase stands for this one's.
    start_from: Path | None


def train_bundled_model(
    text: SourceText, shape: NetworkShape, run: Run, out: Path
) -> dict[str, object]:
    """Train on `text` and write the folder `out`; returns what was measured.

    Raises: TextUnavailable when the text holds too little prose; TrainingDiverged; StartUnusable.
    """
    torch.manual_seed(run.seed)
    corpus = build_corpus(text.source_by_path)
    if not corpus.passages or not corpus.exchanges:
        raise TextUnavailable("the reST files hold no prose")
    _progress(
        f"{len(corpus.passages)} passages, {len(corpus.held_out_passages)} held out, "
        f"{len(corpus.exchanges)} questions"
    )
    network = TrainingNetwork(shape)
    if run.start_from is None:
        tokenizer = train_tokenizer(corpus.training_texts(), shape.vocab_size)
    else:
        tokenizer = _load_start(run.start_from, network)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    _progress(f"{num_parameters} parameters; the first step waits for the compiler")
    phases = _train_phases(network, encode_corpus(corpus, tokenizer), run)
    # A text too small to hold anything out is measured on itself.
    unseen = corpus.held_out_passages or corpus.passages
    report: dict[str, object] = {
        "seed": run.seed,
        "num_parameters": num_parameters,
        "num_training_characters": sum(len(each) for each in corpus.training_texts()),
        "num_validation_characters": sum(len(each) for each in corpus.held_out_passages),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "phases": phases,
        **asdict(measure(network, tokenizer, unseen)),
    }
    words = frequent_words(corpus.training_texts())
    write_model(network, tokenizer, out, report=report, words=words, licence=text.licence)
    return report


def _train_phases(network: TrainingNetwork, corpus: EncodedCorpus, run: Run) -> dict[str, object]:
    """First everything, then the questions asked most; returns what each phase did."""
    clock = MonotonicClock()
    phases: dict[str, object] = {}
    if run.start_from is None:
        result = train(network, TokenStream(corpus, run.seed), run.plan, clock, _progress)
        phases["everything"] = asdict(result)
    else:
        phases["start"] = json.loads((run.start_from / REPORT_FILE).read_text("utf-8"))
    asked = chat_corpus(corpus, MIN_CHAT_WEIGHT)
    if run.num_chat_steps and asked.exchanges:
        plan = replace(
            run.plan,
            num_steps=run.num_chat_steps,
            peak_learning_rate=CHAT_PEAK_LEARNING_RATE,
            spreads_long_rows=True,
        )
        _progress(f"{len(asked.exchanges)} of the questions once more")
        result = train(network, TokenStream(asked, run.seed), plan, clock, _progress)
        phases["questions"] = asdict(result)
    return phases


def _load_start(folder: Path, network: TrainingNetwork) -> Tokenizer:
    """Put the weights of an earlier run into `network`; returns its tokenizer."""
    for name in (WEIGHTS_FILE, TOKENIZER_FILE, REPORT_FILE):
        if not (folder / name).is_file():
            raise StartUnusable(folder, f"{name} is missing")
    weights = load_file(folder / WEIGHTS_FILE)
    try:
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise StartUnusable(folder, "the weights have other shapes") from error
    return Tokenizer.from_file(str(folder / TOKENIZER_FILE))


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
    length.add_argument("--minutes", type=float, default=7.0, help="first phase only")
    length.add_argument("--steps", type=int, help="the same in steps, to repeat a run")
    parser.add_argument("--chat-steps", type=int, default=1000, help="length of the second phase")
    parser.add_argument("--start-from", type=Path, help="folder that holds the first phase")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
