"""A TCP port that stays ours between the moment it is chosen and the moment a child listens."""

import errno
import socket
import sys

from deploy.local.errors import LaunchFailed


class ReservedPort:
    """A port that was free. Made by `reserve_port`; owned until `release`."""

    def __init__(self, port: int, *holders: socket.socket) -> None:
        self.port = port
        self._holders = holders

    def release(self) -> None:
        """Let the port go; twice is harmless. A listener of somebody else is not touched."""
        for holder in self._holders:
            holder.close()


def reserve_port(host: str, port: int) -> ReservedPort:
    """Take `port`, or a free one for 0, in such a way that a child can listen on it.

    On Linux a socket that is bound with SO_REUSEADDR and never listens keeps others from being
    given the port, yet lets a server with the same option have it. Another such socket it does not
    keep out, so that a second one, with a name, is there for whoever reserves. Elsewhere the port
    is let go.
    Raises: LaunchFailed when the port is taken or cannot be had.
    """
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise LaunchFailed(f"host {host} is unknown; set another --host") from error
    holder = socket.socket(family, kind, protocol)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(address)
        bound_host, bound_port = holder.getsockname()[:2]
        if sys.platform != "linux":
            holder.close()
            return ReservedPort(bound_port)
        return ReservedPort(bound_port, holder, _claim(bound_host, bound_port))
    except OSError as error:
        holder.close()
        raise LaunchFailed(_why_not(error, host, port)) from error


def _claim(host: str, port: int) -> socket.socket:
    """Such names belong to a network namespace, as ports do, and end with their process.

    Raises: OSError where somebody has it.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0tandem-router {host} {port}")
    except OSError:
        claim.close()
        raise
    return claim


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; stop what listens on it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is not an address of this machine; set another --host"
    return f"cannot listen on {host}:{port}: {error.strerror}; set another --host or --port"
