"""A cable between two network namespaces that delays and loses packets, for kernels without netem.

Two TUN devices, one of them handed to the other namespace, and a thread that carries packets from
one to the other after a while, but for those that the dice take. Needs root and `/dev/net/tun`.
"""

import fcntl
import os
import random
import selectors
import struct
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from runtime.clock import Clock, MonotonicClock

_TUN = Path("/dev/net/tun")
# <linux/if_tun.h>: TUNSETIFF; IP packets and nothing before them.
_SET_DEVICE, _PACKETS_ONLY = 0x400454CA, 0x0001 | 0x1000
_MAX_PACKET_BYTES = 65536
_STOP_TIMEOUT_S = 10.0
# On their way at a time, both ways together; what comes then is lost, as with netem.
_MAX_PACKETS = 10_000
# Taken from a device before those that are due leave.
_MAX_AT_ONCE = 64


class LossyCable:
    """Carries packets both ways and loses a fraction of them; the devices end with `close`.

    None arrives before `delay_s` have passed; it may be a millisecond more.
    Raises: OSError without the right to make a TUN device.
    """

    def __init__(
        self,
        ends: tuple[str, str],
        loss_fraction: float,
        seed: int,
        delay_s: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self.num_lost = 0
        self._loss_fraction = loss_fraction
        self._delay_s = delay_s
        self._clock = clock or MonotonicClock()
        # When each is due, where it goes, and itself. All take equally long: they leave in order.
        self._on_their_way: deque[tuple[float, int, bytes]] = deque()
        self._rng = random.Random(seed)
        self._files: list[int] = []
        try:
            for name in ends:
                self._files.append(os.open(_TUN, os.O_RDWR | os.O_NONBLOCK))
                wanted = struct.pack("16sH22x", name.encode(), _PACKETS_ONLY)
                fcntl.ioctl(self._files[-1], _SET_DEVICE, wanted)
        except OSError:
            self._close_files()
            raise
        self._until, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="lossy-cable", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop carrying; the devices go away."""
        os.write(self._stop, b"x")
        self._thread.join(_STOP_TIMEOUT_S)
        self._files += [self._until, self._stop]
        self._close_files()

    def _carry(self) -> None:
        one, other = self._files
        with selectors.DefaultSelector() as ready:
            ready.register(one, selectors.EVENT_READ, other)
            ready.register(other, selectors.EVENT_READ, one)
            ready.register(self._until, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select(self._until_next_s()):
                    if key.data is None:
                        return
                    self._take_in(key.fd, key.data)
                self._deliver()

    def _until_next_s(self) -> float | None:
        if not self._on_their_way:
            return None
        return max(0.0, self._on_their_way[0][0] - self._clock.now())

    def _take_in(self, source: int, target: int) -> None:
        due_at_s = self._clock.now() + self._delay_s
        for _ in range(_MAX_AT_ONCE):
            try:
                packet = os.read(source, _MAX_PACKET_BYTES)
            except OSError:
                return  # no more packets, or the device is down
            is_full = len(self._on_their_way) >= _MAX_PACKETS
            if is_full or self._rng.random() < self._loss_fraction:
                self.num_lost += 1
            else:
                self._on_their_way.append((due_at_s, target, packet))

    def _deliver(self) -> None:
        now = self._clock.now()
        while self._on_their_way and self._on_their_way[0][0] <= now:
            _, target, packet = self._on_their_way.popleft()
            # Down, or full: the packet is lost, which is what this is for.
            with suppress(OSError):
                os.write(target, packet)

    def _close_files(self) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()
