"""A port is asked for before it is taken."""

import socket

import pytest

from p2p_mesh.http.server import has_ipv6
from p2p_mesh.node.listening import is_free

HOSTS = ["127.0.0.1", *(["::1"] if has_ipv6() else [])]


@pytest.mark.parametrize("host", HOSTS)
def test_port_is_free_until_somebody_listens(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert not is_free(host, port)
    assert is_free(host, port)


def test_any_port_is_none_of_last_time() -> None:
    assert not is_free("127.0.0.1", 0)
