"""Large prompts, as text and as token ids."""

import random
from typing import Literal

from tandemserve.api.v1 import inference_pb2 as pb

Kind = Literal["text", "ids"]
# Every id below takes two bytes.
_FIRST_ID, _NUM_IDS, _BYTES_PER_ID = 1000, 900, 2
_NUM_WORDS, _LONGEST_WORD = 5000, 9


def request_of(num_bytes: int, kind: Kind = "ids") -> bytes:
    """A request whose prompt takes so many bytes as it travels; one token is asked for."""
    request = pb.GenerateRequest()
    if kind == "text":
        request.text = text_of(num_bytes)
    else:
        count = num_bytes // _BYTES_PER_ID
        request.tokens.ids.extend(_FIRST_ID + i % _NUM_IDS for i in range(count))
    request.stop.max_tokens = 1
    request.stop.ignore_eos = True
    return request.SerializeToString()


def text_of(num_bytes: int) -> str:
    """Made-up words of letters as frequent as in English; always the same ones."""
    rng = random.Random(13)
    letters = "eeeeeetttttaaaaooooiiiinnnnssshhhrrrdddlluuccmmwwffggyyppbbvk"
    words = [
        "".join(rng.choices(letters, k=rng.randint(1, _LONGEST_WORD))) for _ in range(_NUM_WORDS)
    ]
    text = " ".join(rng.choices(words, k=num_bytes // 2))
    return text[:num_bytes]
