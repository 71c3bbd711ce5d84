"""A causal language model of the transformers library, in two parts: its body and its head.

The library computes logits in one call; the engine wants them of few rows only. The body is found
by watching one call: the last module that gives hidden states. For the head, the whole model is
called with that body answering at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.loading_progress import UNWATCHED, LoadingProgress
from engine.model_folder_errors import InvalidWeightFile, UnsupportedModelOption
from engine.other.config_json import refuse_what_no_trial_shows
from engine.other.seat import ATTENTION_NAME, CannotAttend, Seat, SeenLayer

_ANOTHER = "use a model of a family that Tandem computes itself"
# What an odd config.json makes the library raise.
_LIBRARY_ERRORS = (
    ValueError,
    KeyError,
    ImportError,
    OSError,
    TypeError,
    AttributeError,
    RuntimeError,
)


class Network:
    """Loaded weights. Every call computes the rows it is given, all at once."""

    def __init__(self, folder: Path, model: Any) -> None:
        """`model`: a transformers.PreTrainedModel with a language model head, in evaluation mode.

        Raises: UnsupportedModelOption where it does not attend by the library's interface.
        """
        self._folder = folder
        self._model = model
        # By which function the library would attend.
        self._own_attention: str = model.config._attn_implementation
        self.seat = Seat(model)
        self._use(ATTENTION_NAME)
        self.layers = self._trace()
        self.index_of = {id(seen.module): index for index, seen in enumerate(self.layers)}
        self._body, self._answer_of = self._find_body()

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def has_experts(self) -> bool:
        """Whether a token's products are made together with those of the tokens it meets."""
        return any("expert" in name.lower() for name, _ in self._model.named_modules())

    def hidden(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """[rows, hidden_size] of token_ids, positions [rows]; somebody must be in the seat."""
        found = self._body(
            input_ids=token_ids[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state[0]
        assert isinstance(found, Tensor)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocab_size] of hidden states [rows, hidden_size]."""
        with self._answering(hidden[None]):
            ids = torch.zeros((1, hidden.shape[0]), dtype=torch.int64, device=self.device)
            found = self._model(input_ids=ids, use_cache=False).logits[0]
        assert isinstance(found, Tensor)
        return found

    def logits_by_library(self, token_ids: Tensor) -> Tensor:
        """[num_tokens, vocab_size] of one whole sequence [num_tokens], with nothing of ours."""
        self._use(self._own_attention)
        try:
            found = self._model(input_ids=token_ids[None], use_cache=False).logits[0]
        finally:
            self._use(ATTENTION_NAME)
        assert isinstance(found, Tensor)
        return found

    @contextmanager
    def windows_of(self, num_tokens: int) -> Iterator[None]:
        """Sliding windows are so short, for the library and for its modules that tell us theirs."""
        config, saved = self._model.config, []
        for owner in (config, *self._model.modules()):
            if isinstance(getattr(owner, "sliding_window", None), int):
                saved.append((owner, owner.sliding_window))
                owner.sliding_window = num_tokens
        try:
            yield
        finally:
            for owner, window in saved:
                owner.sliding_window = window

    def _use(self, attention: str) -> None:
        self._model.set_attn_implementation(attention)
        if self._model.config._attn_implementation != attention:
            self._refuse("its attention, which is none of the library's interface,")

    def layers_now(self) -> list[SeenLayer]:
        """The layers as they attend while `windows_of` holds."""
        return self._trace()

    @torch.inference_mode()
    def _trace(self) -> list[SeenLayer]:
        """The attention modules, each once and all alike."""
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        try:
            with self.seat.tracing() as layers:
                self._model(input_ids=ids, position_ids=ids, use_cache=False)
        except CannotAttend as refusal:
            self._refuse(str(refusal))
        num_layers = self._model.config.get_text_config().num_hidden_layers
        if len({id(seen.module) for seen in layers}) != num_layers or len(layers) != num_layers:
            self._refuse(f"a model in which not each of {num_layers} layers attends once")
        if len({(seen.num_heads, seen.num_kv_heads, seen.head_dim) for seen in layers}) > 1:
            self._refuse("another number or width of heads in some layers")
        return layers

    @torch.inference_mode()
    def _find_body(self) -> tuple[nn.Module, Callable[..., object]]:
        """The module whose hidden states the head takes, and the class of what it gives."""
        bodies: list[tuple[nn.Module, type]] = []

        def note(module: nn.Module, arguments: object, result: object) -> None:
            if isinstance(getattr(result, "last_hidden_state", None), Tensor):
                bodies.append((module, type(result)))

        handles = [
            module.register_forward_hook(note)
            for module in self._model.modules()
            if module is not self._model
        ]
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        with self.seat.tracing():
            self._model(input_ids=ids, position_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        if not bodies:
            self._refuse("a model without a body that gives hidden states")
        return bodies[-1]

    @contextmanager
    def _answering(self, hidden: Tensor) -> Iterator[None]:
        """The body gives these hidden states, whatever it is asked."""

        def forward(*arguments: object, **options: object) -> object:
            return self._answer_of(last_hidden_state=hidden)

        self._body.__dict__["forward"] = forward
        try:
            yield
        finally:
            del self._body.__dict__["forward"]

    def _refuse(self, what: str) -> None:
        raise UnsupportedModelOption(self._folder, what, _ANOTHER)


def _require_same_class(folder: Path, model: Any) -> None:
    """The library chooses by model_type, whatever class the file names, and ignores its code."""
    named, found = model.config.architectures, type(model).__name__
    if named and named[0] != found:
        raise UnsupportedModelOption(
            folder, f"{named[0]}, which transformers takes for {found},", _ANOTHER
        )


def _watched(
    progress: LoadingProgress,
    make_bar: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """In place of the library's bar over what it loads; others stay as they are."""
    if not arguments or "weights" not in str(options.get("desc")):
        return make_bar(*arguments, **options)
    return _counted(progress, list(arguments[0]))


def _counted(progress: LoadingProgress, items: list[Any]) -> Iterator[Any]:
    for number, item in enumerate(items):
        progress.advanced(number, len(items))
        yield item


def load_network(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: LoadingProgress = UNWATCHED,
) -> Network:
    """Raises: UnsupportedModelOption, InvalidWeightFile."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # A worker tells what it does in its own log, and all that is wrong by errors.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Not every version of the library tells.
    watch_bars = getattr(logging, "set_tqdm_hook", lambda hook: None)
    watch_bars(partial(_watched, progress))
    progress.phase("loading weights")
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except _LIBRARY_ERRORS as error:
        # Among them: a family that this version does not know, or that has code of its own.
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UnsupportedModelOption(
            folder, f"what transformers says of it ({reason})", _ANOTHER
        ) from error
    finally:
        watch_bars(None)
    _require_same_class(folder, model)
    # Its classes have defaults that no file says.
    refuse_what_no_trial_shows(folder, model.config.get_text_config().to_dict())
    # The library fills what is missing with random numbers.
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[problem])):
            raise InvalidWeightFile(folder, f"{problem.replace('_', ' ')}: {names[0]} and the like")
    return Network(folder, model.to(device).eval())
