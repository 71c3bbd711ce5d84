"""`tandem doctor`: every way that KV can take between two workers of this machine, measured."""
