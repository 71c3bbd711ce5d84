"""A reserved port is refused to strangers and free for the child."""

import socket
import sys

import pytest

from deploy.local.errors import LaunchFailed
from deploy.local.port import reserve_port


def test_a_taken_port_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(LaunchFailed, match=rf"port {port} is taken; .* --port"):
            reserve_port("127.0.0.1", port)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the port is let go")
def test_a_reserved_port_can_be_listened_on_while_it_is_held() -> None:
    reserved = reserve_port("127.0.0.1", 0)
    try:
        assert reserved.port > 0
        with socket.create_server(("127.0.0.1", reserved.port)) as listener:
            assert listener.getsockname()[1] == reserved.port
        # And again, as after the restart of a router.
        socket.create_server(("127.0.0.1", reserved.port)).close()
    finally:
        reserved.release()
        reserved.release()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the port is let go")
def test_two_cannot_reserve_a_port_on_which_nobody_listens_yet() -> None:
    reserved = reserve_port("127.0.0.1", 0)
    try:
        with pytest.raises(LaunchFailed, match=rf"port {reserved.port} is taken; .* --port"):
            reserve_port("127.0.0.1", reserved.port)
    finally:
        reserved.release()
    reserve_port("127.0.0.1", reserved.port).release()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(LaunchFailed, match="host"):
        reserve_port(host, 0)
