"""Tensors: model folders, weights, paged KV, attention, sampling, and one forward pass at a time."""
