"""Sends without a copy on a connected socket: asks for them, and hears when each is released."""

import ctypes
import errno
import select
import socket
import struct
from collections.abc import Sequence
from typing import Final

from kvtransfer.zerocopy import PinnedSends, ZeroCopy, read_released
from runtime.clock import Clock

# <asm-generic/socket.h>; Python has no names for them.
_SO_ZEROCOPY: Final = 60
_MSG_ZEROCOPY: Final = 0x4000000
# Room for one extended error with an address of version 6.
_CONTROL_BYTES: Final = 128
# The kernel does not send this memory in place, or not so much of it; a plain send may still do.
_REFUSALS: Final = (errno.ENOBUFS, errno.ENOMEM, errno.EFAULT, errno.EINVAL, errno.EOPNOTSUPP)
# Steps of waiting for a device to let go.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
# struct sockaddr of AF_UNSPEC.
_NOBODY: Final = struct.pack("@H14x", socket.AF_UNSPEC)


class ZeroCopySocket:
    """The part of one connection that sends block bytes in place; used by one thread."""

    def __init__(self, connection: socket.socket, use: ZeroCopy) -> None:
        self._socket = connection
        self.sends = PinnedSends(use)
        if use is ZeroCopy.NEVER:
            return
        try:
            connection.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        except OSError as error:
            self._refused(error)

    def send(self, buffers: Sequence[memoryview]) -> int:
        """How many bytes the kernel took. Raises: OSError.

        It reads them in place until `sends` counts them as released, or has copied them where it
        refuses to.
        """
        if self.sends.problem is None:
            try:
                count = self._socket.sendmsg(buffers, (), socket.MSG_NOSIGNAL | _MSG_ZEROCOPY)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._refused(error)
            else:
                if count:
                    self.sends.note_sent()
                return count
        return self._socket.sendmsg(buffers, (), socket.MSG_NOSIGNAL)

    def collect(self) -> bool:
        """Read what the error queue holds, without waiting; whether it held anything."""
        has_read = False
        # The kernel merges what it can, so there is at most one message for each pending send.
        for _ in range(self.sends.num_pending):
            try:
                _, messages, _, _ = self._socket.recvmsg(0, _CONTROL_BYTES, socket.MSG_ERRQUEUE)
            except OSError:
                break  # nothing there, or the socket is gone
            has_read = True
            for level, kind, data in messages:
                released = read_released(level, kind, data)
                if released is not None:
                    self.sends.note_released(released)
        return has_read

    def break_off(self, timeout_s: float, clock: Clock) -> bool:
        """Reset the connection, and wait until nothing in this machine reads what was sent.

        The kernel forgets what it has not sent or what was not acknowledged. Packets that a device
        holds already are read until it has sent them: those are waited for. False: some still are.
        """
        if not self.sends.num_pending:
            return True
        _disconnect(self._socket)
        until_s, pause_s = clock.now() + timeout_s, _FIRST_PAUSE_S
        self.collect()
        while self.sends.num_pending and clock.now() < until_s:
            # A socket that is not connected is always ready, so it cannot be waited for.
            select.poll().poll(pause_s * 1000)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.collect()
        return not self.sends.num_pending

    def _refused(self, error: OSError) -> None:
        self.sends.stop(f"refused: {error.strerror or error}")


def _disconnect(connection: socket.socket) -> None:
    """Have the peer told, and everything dropped that is queued, but keep the socket open."""
    # Python's own connect knows no such address. Whether it worked shows in what comes back.
    ctypes.CDLL(None).connect(connection.fileno(), _NOBODY, len(_NOBODY))
