"""Policies beside each other on recorded loads, by simulation; see `__main__`."""
