"""What a client may be pointed at."""

import pytest

from tandemserve.settings import check_target


@pytest.mark.parametrize("target", ["127.0.0.1:7700", "router:1", "[::1]:65535", "unix:/tmp/s"])
def test_a_host_with_a_port_is_a_target(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        ":7700",
        "127.0.0.1:99999",
        "h:0",
        "http://h:7700",
        "::1",
        "unix:",
    ],
)
def test_anything_else_is_refused_before_something_else_is_dialled(target: str) -> None:
    with pytest.raises(ValueError, match="give host:port"):
        check_target(target)
