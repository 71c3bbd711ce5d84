"""Everything under `benchmarks/results` as one page to look at; see `__main__`."""
