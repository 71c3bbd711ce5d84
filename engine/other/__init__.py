"""Families that the engine does not compute itself, by the transformers library over paged KV."""
