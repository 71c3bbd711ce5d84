"""How many tokens a model's context has: the one place that knows what config.json means by it.

Scalings of rotary positions differ in what the published files hold in `max_position_embeddings`.
For linear, dynamic and yarn it is the length that the model was trained with (transformers'
documentation asks to leave it so), and the context is `factor` times that. For llama3 and longrope,
and for Gemma 3 whatever its scaling, it is the stretched length. yarn files are found in both
spellings; `original_max_position_embeddings` tells them apart.
"""

from typing import Self

from pydantic import Field, model_validator

from engine.json_file import JsonSchema

# Whose max_position_embeddings is the length before it was stretched.
_STRETCHED_BY_FACTOR = ("linear", "dynamic", "yarn")


class DualChunkJson(JsonSchema):
    """Attention of Qwen2.5-1M: positions are counted anew in each chunk of a long context."""

    chunk_size: int = Field(gt=0)
    local_size: int = Field(gt=0)
    original_max_position_embeddings: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _chunks_are_longer_than_what_they_share(self) -> Self:
        if self.chunk_size <= self.local_size:
            raise ValueError("chunk_size must be above local_size")
        return self

    @property
    def plain_length(self) -> int:
        """Up to so many tokens it is ordinary attention, by positions as they are.

        A query of the second chunk counts on from the first until it is `chunk_size` away from the
        beginning; one of the third counts otherwise.
        """
        length = min(self.chunk_size, 2 * (self.chunk_size - self.local_size))
        return min(length, self.original_max_position_embeddings or length)


def stretched_context(
    declared: int, rope_type: str, factor: float | None, original: int | None
) -> int:
    """The longest context in tokens, prompt and answer together; never below `declared`.

    `declared` is max_position_embeddings; `original` the length before it was stretched, where the
    file says it. A file whose declared length is the stretched one is not stretched again.
    """
    if rope_type not in _STRETCHED_BY_FACTOR or factor is None:
        return declared
    return max(declared, int((original or declared) * factor))
