"""The undisturbed answers: one engine in this process, without router, workers or transfers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.chaos.plan import Ask
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_any_model
from engine.model_folder import open_model_folder
from engine.model_runner import ModelRunner
from engine.testing import TrialRequest, TrialResult, run_together
from engine.tokenizer import Tokenizer
from scheduling.sampling import SamplingParams, StopParams, TokenLogprobs
from scheduling.step import SequenceStart, StepResult
from worker.output_text import OutputText

_BLOCK_SIZE = 16
# Sequences computed together; results do not depend on it.
_MAX_BATCH = 64
_NUM_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class RightAnswer:
    """One of the n answers to a request."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    matched_stop: str | int | None
    # One for each token where asked for, else empty.
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class RightAnswers:
    """What a request must be answered with."""

    choices: tuple[RightAnswer, ...]
    # The stop string that was cut out of the undisturbed text; None where there is none.
    stop: str | None
    # One for each prompt token but the first where asked for, else empty.
    prompt_logprobs: tuple[TokenLogprobs, ...]


class Oracle:
    """Computes each distinct sequence once."""

    def __init__(self, folder: Path) -> None:
        checked = open_model_folder(folder)
        self._model = load_any_model(checked, "float32")
        self._tokenizer = Tokenizer.from_folder(folder)
        config = self._model.config
        self._layout = KvLayout(
            config.num_layers, config.num_kv_heads, config.head_dim, _BLOCK_SIZE, "float32"
        )
        self._eos_token_ids = checked.config.eos_token_ids
        self._known: dict[TrialRequest, TrialResult] = {}

    def answers(self, asks: Sequence[Ask]) -> list[RightAnswers]:
        """In the order of the requests."""
        self._compute([trial for ask in asks for trial in self._trials(ask)])
        return [self._answers_to(ask) for ask in asks]

    def _trials(self, ask: Ask) -> list[TrialRequest]:
        """One for each answer, each with the seed that follows."""
        ends = self._eos_token_ids if ask.sampling.min_tokens and not ask.ignore_eos else ()
        return [
            TrialRequest(
                ask.prompt,
                ask.max_tokens,
                replace(
                    ask.sampling,
                    seed=(ask.sampling.seed + index) % _NUM_SEEDS,
                    end_token_ids=ends,
                ),
            )
            for index in range(ask.num_choices)
        ]

    def _compute(self, trials: Sequence[TrialRequest]) -> None:
        missing = [trial for trial in dict.fromkeys(trials) if trial not in self._known]
        for first in range(0, len(missing), _MAX_BATCH):
            batch = missing[first : first + _MAX_BATCH]
            num_blocks = sum(
                -(-(len(trial.prompt) + trial.num_output) // _BLOCK_SIZE) for trial in batch
            )
            pool = KvPool(self._layout, num_blocks)
            runner = ModelRunner(self._model, pool, max_num_seqs=len(batch))
            results = run_together(runner, batch, _BLOCK_SIZE, num_blocks)
            self._known.update(zip(batch, results, strict=True))

    def _answers_to(self, ask: Ask) -> RightAnswers:
        trials = self._trials(ask)
        stop = self._stop_of(ask, trials[0])
        choices = tuple(self._spoken(ask, trial, stop) for trial in trials)
        pieces = self._known[trials[0]].prompt_logprobs
        top = [tuple(zip(piece.top_token_ids, piece.top_logprobs, strict=True)) for piece in pieces]
        prompt_logprobs = tuple(
            TokenLogprobs(logprob, top[number][at * piece.num_top : (at + 1) * piece.num_top])
            for number, piece in enumerate(pieces)
            for at, logprob in enumerate(piece.logprobs)
        )
        return RightAnswers(choices, stop, prompt_logprobs)

    def _stop_of(self, ask: Ask, trial: TrialRequest) -> str | None:
        if ask.stop_at is None:
            return None
        text = self._spoken(ask, trial, None).text
        at = int(len(text) * ask.stop_at)
        # Some answers have no text to stop at.
        return text[at : at + ask.num_stop_chars] or None

    def _spoken(self, ask: Ask, trial: TrialRequest, stop: str | None) -> RightAnswer:
        """The tokens as far as they go before a stop condition, and what they say."""
        result, params = self._known[trial], trial.sampling
        text = OutputText(self._tokenizer)
        text.load(
            SequenceStart(0, trial.prompt, len(trial.prompt), params, ()), self._stops(ask, stop)
        )
        pieces: list[str] = []
        for number, token_id in enumerate(result.token_ids):
            (said,) = text.process(StepResult((0,), (token_id,)))
            pieces.append(said.text)
            if said.finish_reason is not None:
                return RightAnswer(
                    tuple(result.token_ids[: number + 1]),
                    "".join(pieces),
                    said.finish_reason,
                    said.matched_stop,
                    _logprobs(result, params, number + 1),
                )
        raise AssertionError("an answer ends at max_tokens at the latest")

    def _stops(self, ask: Ask, stop: str | None) -> StopParams:
        ends = () if ask.ignore_eos else self._eos_token_ids
        return StopParams(ask.max_tokens, ends, () if stop is None else (stop,))


def _logprobs(
    result: TrialResult, params: SamplingParams, num_tokens: int
) -> tuple[TokenLogprobs, ...]:
    if params.num_logprobs is None:
        return ()
    found = tuple(entry for entry in result.logprobs[:num_tokens] if entry is not None)
    assert len(found) == num_tokens
    return found
