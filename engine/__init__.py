"""Tensors: model folders, weights, paged KV, attention, sampling, one forward pass at a time."""
