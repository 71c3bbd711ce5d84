"""Decisions: what runs next, where, and how much KV cache it may hold. Standard library only."""
