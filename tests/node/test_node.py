"""A node before it runs; tests/real runs it."""

import dataclasses
import math
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.plans import Wanted
from p2p_mesh.core.records import EmbedQuery, InferenceRequest, ModelFile, TextPrompt
from p2p_mesh.errors import Loading, LocalError, Unavailable, UnknownModel
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.node import Node
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve.backend import Load, Offer, Source
from p2p_mesh.serve.store import Digests, Stock
from p2p_mesh.settings import Settings
from p2p_mesh.state import Belonging
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.mesh import NoMesh

MODEL = ModelFile(
    id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
    kv_bytes_per_token=1,
)  # fmt: skip


def node(
    tmp_path: Path, said: list[Entry] | None = None, *sources: Source, **settings: Any
) -> Node:
    plugins = Plugins()
    echo = SimpleNamespace(
        meshnode_api=1,
        meshnode_backends=hookimpl(lambda: [Echo()]),
        meshnode_sources=hookimpl(lambda: sources),
    )
    plugins.add("echo", lambda: echo)
    plugins.ask(Settings())
    return Node(
        Settings(data_dir=str(tmp_path), **settings), Stock((MODEL,)), (), plugins,
        Digests(tmp_path / "digests.json"), Journal(*([said.append] if said is not None else [])),
    )  # fmt: skip


def belonging(port: int) -> Belonging:
    return msgspec.convert(
        {"mesh": b"m" * 32, "name": "x", "port": port,
         "credential": {"membership": {"payload": b"", "signature": bytes(64)}}},
        Belonging,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_settings_reach_the_load(tmp_path: Path) -> None:
    load = node(tmp_path, ctx=32, threads=1, max_memory=2.0).hosted["m"].load
    assert load is not None
    assert (load.context, load.threads, load.memory_limit) == (32, 1, 2_000_000_000)


def test_port_of_last_time_is_taken_again_if_it_is_free(tmp_path: Path) -> None:
    mine = node(tmp_path, p2p_host="127.0.0.1")
    port = free_port()
    assert mine._listen(belonging(port)) == (f"/ip4/127.0.0.1/tcp/{port}",)
    with socket.create_server(("127.0.0.1", port)):
        assert mine._listen(belonging(port)) == ("/ip4/127.0.0.1/tcp/0",)
    assert mine._listen(belonging(0)) == ("/ip4/127.0.0.1/tcp/0",)


def test_given_port_is_taken_as_it_is(tmp_path: Path) -> None:
    assert node(tmp_path, p2p_port=4001)._listen(belonging(9)) == ("/ip4/0.0.0.0/tcp/4001",)
    assert node(tmp_path, p2p_host="::1", p2p_port=4001)._listen(belonging(9)) == (
        "/ip6/::1/tcp/4001",
    )


async def test_invite_needs_a_node_that_is_up(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="still starting"):
        await node(tmp_path).invite("member", None)


async def test_plan_needs_a_node_that_is_up(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not connected"):
        await node(tmp_path).plan(Wanted(model="m"))


async def test_peer_gets_this_nodes_models_only(tmp_path: Path) -> None:
    mine = node(tmp_path)
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="hello")
    )
    with pytest.raises(Loading):
        async with mine._answer_peer(request, PeerId("p")):
            pass
    with pytest.raises(UnknownModel):
        mine._answer_peer(msgspec.structs.replace(request, model=ModelId("other")), PeerId("p"))
    with pytest.raises(Loading):
        await mine._reply_peer(EmbedQuery(model=ModelId("m"), inputs=("x",)), PeerId("p"))
    with pytest.raises(UnknownModel):
        await mine._reply_peer(EmbedQuery(model=ModelId("other"), inputs=("x",)), PeerId("p"))


class Elsewhere:
    """A source whose one model never opens, and which tells its models late, or never."""

    name = "foreign:8080"

    async def watch(self, offer: Any, note: Any) -> None:
        offer(
            [Offer(ModelId("far"), lambda: Echo(load_seconds=math.inf).open(Load(MODEL), NoMesh()))]
        )
        await trio.sleep_forever()


async def test_offers_stand_beside_the_files(tmp_path: Path) -> None:
    mine = node(tmp_path, None, Elsewhere())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mine.sourced[0].run)
        await trio.testing.wait_all_tasks_blocked()
        assert {name: one.state for name, one in mine.hosted.items()} == {
            "m": "loading", "far": "loading"
        }  # fmt: skip
        nursery.cancel_scope.cancel()


async def test_server_elsewhere_is_no_device_of_this_node(tmp_path: Path) -> None:
    mine = node(tmp_path)
    far = mine.hosted["far"] = mine.models.host(
        Offer(ModelId("far"), lambda: Echo().open(Load(MODEL), NoMesh()))
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.run)
        await far.wait_settled()
        assert far.description is not None
        far._about = dataclasses.replace(far.description, device="http://secret.example")
        assert "secret" not in mine.measured().device
        nursery.cancel_scope.cancel()


async def test_parts_are_served_of_what_a_node_is_to_have_a_shard_of(tmp_path: Path) -> None:
    """Others may need them before any shard can be served."""
    found = node(tmp_path)
    found.models.add((MODEL,))
    assert found._loaded() == []
    found.hosted[MODEL.id].room = 5
    assert found._loaded() == [MODEL]
