"""Recordings of a router's core: what it was told, when, and what it wanted done."""
