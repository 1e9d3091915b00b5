"""Listening addresses."""

from __future__ import annotations

import pytest
import trio

from p2p_mesh.net.addresses import expand, why_deaf


def test_plain_address_stands_for_itself() -> None:
    assert expand("/ip4/127.0.0.1/tcp/1") == ("/ip4/127.0.0.1/tcp/1",)


def test_wildcard_is_every_interface_loopback_last() -> None:
    found = expand("/ip4/0.0.0.0/tcp/4001")
    assert found[-1] == "/ip4/127.0.0.1/tcp/4001"
    assert not any("0.0.0.0" in address for address in found)


async def test_port_in_use_is_told() -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = await why_deaf(f"/ip4/127.0.0.1/tcp/{port}")
    assert str(error) == f"port {port} is in use; choose another with --p2p-port"


@pytest.mark.parametrize("address", ["/ip4/192.0.2.1/tcp/1", "/dns/x/udp/1", "/ip4/1.1.1.1/tcp/x"])
async def test_other_reasons_name_the_address(address: str) -> None:
    assert address in str(await why_deaf(address)) or "port" in str(await why_deaf(address))
