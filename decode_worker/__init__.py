"""Runs generation tasks in a continuous batch."""
