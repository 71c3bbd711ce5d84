"""What the SDK and the router call a field, in the words of the command line. Pure."""

import re

# A complaint begins with the name of one of these, where the request itself is wrong.
OPTION_BY_FIELD = {
    "cache_salt": "--cache-salt",
    "frequency_penalty": "--frequency-penalty",
    "ignore_eos": "--ignore-eos",
    "jct_ms": "--jct-ms",
    "logit_bias": "--logit-bias",
    "logprobs": "--logprobs",
    "max_tokens": "--max-tokens",
    "min_p": "--min-p",
    "min_tokens": "--min-tokens",
    "model": "--model",
    "n": "-n",
    "num_logprobs": "--logprobs",
    "num_prompt_logprobs": "--prompt-logprobs",
    "presence_penalty": "--presence-penalty",
    "prompt_logprobs": "--prompt-logprobs",
    "repetition_penalty": "--repetition-penalty",
    "request_class": "--class",
    "request_id": "--request-id",
    "seed": "--seed",
    "session": "--session",
    "stop": "--stop",
    "stop_token_ids": "--stop-token-id",
    "tbt_ms": "--tbt-ms",
    "temperature": "--temperature",
    "tenant": "--tenant",
    "timeout_s": "--timeout",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "tpot_ms": "--tpot-ms",
    "ttft_ms": "--ttft-ms",
}
# In the middle of a sentence only what cannot be a word of it.
_WITHIN = re.compile(
    rf"(?<![\w.-])({'|'.join(field for field in OPTION_BY_FIELD if '_' in field)})(?![\w.-]*\w)"
)
_TIMEOUT = re.compile(r"\btimeout_s\b")


def in_options(message: str) -> str:
    """The message of a generation with options in place of fields."""
    field, colon, rest = message.partition(":")
    if colon and field in OPTION_BY_FIELD:
        return f"{OPTION_BY_FIELD[field]}:{in_sentence(rest)}"
    return in_sentence(message)


def in_sentence(message: str) -> str:
    """The same where a message does not begin with a field."""
    return _WITHIN.sub(lambda found: OPTION_BY_FIELD[found[1]], message)


def with_timeout_option(message: str) -> str:
    """What every command has: `--timeout`."""
    return _TIMEOUT.sub("--timeout", message)


def blames_an_option(message: str) -> bool:
    """Whether a complaint about a generation begins with what an option sets."""
    return message.partition(":")[0] in OPTION_BY_FIELD
