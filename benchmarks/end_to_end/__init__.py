"""Tandem beside what a user would pick instead, end to end, on the same weights and cores."""
