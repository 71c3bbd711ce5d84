"""A cable between two network namespaces that loses packets, for kernels without netem.

Two TUN devices, one of them handed to the other namespace, and a thread that carries packets from
one to the other but for those that the dice take. Needs root and `/dev/net/tun`.
"""

import fcntl
import os
import random
import selectors
import struct
import threading
from pathlib import Path

_TUN = Path("/dev/net/tun")
# <linux/if_tun.h>: TUNSETIFF; IP packets and nothing before them.
_SET_DEVICE, _PACKETS_ONLY = 0x400454CA, 0x0001 | 0x1000
_MAX_PACKET_BYTES = 65536
_STOP_TIMEOUT_S = 10.0


class LossyCable:
    """Carries packets both ways and loses a fraction of them; the devices end with `close`.

    Raises: OSError without the right to make a TUN device.
    """

    def __init__(self, ends: tuple[str, str], loss_fraction: float, seed: int) -> None:
        self.num_lost = 0
        self._loss_fraction = loss_fraction
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
                for key, _ in ready.select():
                    if key.data is None:
                        return
                    self._carry_one(key.fd, key.data)

    def _carry_one(self, source: int, target: int) -> None:
        try:
            packet = os.read(source, _MAX_PACKET_BYTES)
            if self._rng.random() < self._loss_fraction:
                self.num_lost += 1
            else:
                os.write(target, packet)
        except OSError:
            pass  # a device that is down, or full: the packet is lost, which is what this is for

    def _close_files(self) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()
