"""The only place of the SDK that reads the time: it ships alone, without runtime/clock.py."""

from time import monotonic  # noqa: TID251  the published wheel has no runtime package

__all__ = ["monotonic"]
