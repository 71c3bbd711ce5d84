"""Attention over paged KV: one call per layer for a mixed batch of chunks and single tokens."""
