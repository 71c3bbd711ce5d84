"""A fake of what a device tells of its memory."""

from engine.kv_memory import DeviceUsage


class FakeStatistics:
    """Says the same of every pass."""

    def __init__(self, usage: DeviceUsage) -> None:
        self._usage = usage
        self.was_reset = False

    def reset_peak(self) -> None:
        self.was_reset = True

    def usage(self) -> DeviceUsage:
        return self._usage
