"""Runs prompt tasks and pushes their KV into decode workers."""
