"""What an owner has a node do; the models are stood in for by what the node says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from p2p_mesh.core.control import (
    MAX_MODELS,
    Command,
    ListModels,
    LoadModel,
    Report,
    StopNode,
    UnloadModel,
    owner_text,
)
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.records import Held
from p2p_mesh.errors import LocalError, UnknownModel
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.control import STOP_DELAY, Control, Models
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.state.owner import make_owner_key
from p2p_mesh.testing.backend import Echo
from tests.node.test_models import M, ask, running, shelf

Clock = trio.testing.MockClock

OWNER = b"o" * 32
PEER = PeerId("12D3-peer")
DIGEST = Digest("ab" * 32)


class Shelf:
    """The models of a node: files, and those of them that are served."""

    def __init__(self, *names: str) -> None:
        self.hosted: dict[str, Hosted] = {}
        self.told: list[tuple[str, str]] = []
        self._files = {name: Digest(name[0].encode().hex() * 32) for name in names}

    def held(self) -> tuple[Held, ...]:
        return tuple(Held(id=ModelId(name), digest=digest) for name, digest in self._files.items())

    def leaving(self) -> tuple[Hosted, ...]:
        return ()

    def serve(self, name: str, **changed: Any) -> Hosted:
        about = {"id": ModelId(name), "digest": self._files.get(name), "state": "ready",
                 "progress": 1.0, "active": 1, "queued": 2, "error": ""}  # fmt: skip
        hosted = cast("Hosted", SimpleNamespace(**about | changed))
        self.hosted[name] = hosted
        return hosted

    async def load(self, reference: str) -> Hosted:
        self.told.append(("load", reference))
        (name,) = (one for one, digest in self._files.items() if reference in (one, digest))
        return self.serve(name, state="loading", progress=0.0)

    async def unload(self, reference: str) -> None:
        self.told.append(("unload", reference))
        hosted = [one for one in self.hosted.values() if reference in (one.id, one.digest)]
        if not hosted:
            raise LocalError(f"{reference} is not served by this node")
        del self.hosted[hosted[0].id]


def control(
    models: Models, said: list[Entry] | None = None, directory: Path = Path("/nowhere")
) -> Control:
    return Control(models, directory, Journal(*([said.append] if said is not None else [])))


def states(report: Report) -> dict[str, str]:
    return {one.id: one.state for one in report.models}


async def test_owner_sees_what_is_served_and_what_lies_on_the_disk() -> None:
    files, said = Shelf("aa", "bb"), list[Entry]()
    files.serve("aa", error="x" * 5000)
    report = await control(files, said).obey(ListModels(), OWNER, PEER)
    assert states(report) == {"aa": "ready", "bb": "held"}
    assert (report.models[0].active, report.models[0].queued) == (1, 2)
    assert len(report.models[0].error) == 300
    assert said == []  # who waits for a model asks each second


async def test_report_ends_somewhere() -> None:
    files = Shelf()
    for number in range(MAX_MODELS + 1):
        files.serve(str(number))
    report = await control(files).obey(ListModels(), OWNER, PEER)
    assert len(report.models) == MAX_MODELS


async def test_owner_loads_by_the_digest_and_the_log_has_it() -> None:
    files, said = Shelf("aa"), list[Entry]()
    digest = files.held()[0].digest
    assert digest is not None
    report = await control(files, said).obey(LoadModel(digest=digest), OWNER, PEER)
    assert states(report) == {"aa": "loading"}
    (entry,) = said
    assert (entry.event, entry.fields) == (
        "ordered", {"owner": owner_text(OWNER), "peer": PEER, "command": f"load {digest}"}
    )  # fmt: skip


@pytest.mark.parametrize("kind", [LoadModel, UnloadModel])
async def test_digest_that_the_node_does_not_have_touches_nothing(
    kind: Callable[..., Command],
) -> None:
    files = Shelf("aa")
    with pytest.raises(UnknownModel, match=f"no model with the digest {DIGEST}"):
        await control(files).obey(kind(digest=DIGEST), OWNER, PEER)
    assert files.told == []


async def answer(hosted: Hosted) -> None:
    async with hosted.generate(ask("one two three")) as deltas:
        assert [delta.text async for delta in deltas][:3] == ["one", " two", " three"]


async def test_owner_does_not_wait_for_the_last_answer(autojump_clock: Clock) -> None:
    assert M.digest is not None
    async with (
        running(shelf(Echo(pause=10.0), standby=(M,))) as models,
        trio.open_nursery() as nursery,
    ):
        mine = control(models)
        assert states(await mine.obey(LoadModel(digest=M.digest), OWNER, PEER)) == {"m": "loading"}
        await models.hosted["m"].wait_settled()
        nursery.start_soon(answer, models.hosted["m"])
        await trio.sleep(1)
        began = trio.current_time()
        report = await mine.obey(UnloadModel(digest=M.digest), OWNER, PEER)
        assert trio.current_time() - began < 1
        assert [(one.id, one.state, one.active) for one in report.models] == [("m", "unloading", 1)]
        await trio.sleep(30)
        assert states(await mine.obey(ListModels(), OWNER, PEER)) == {"m": "held"}


async def test_command_here_names_what_it_means(autojump_clock: Clock) -> None:
    files = Shelf("aa")
    mine = control(files)
    assert await mine.load("aa") == "aa"
    files.serve("aa")
    digest = files.held()[0].digest
    assert digest is not None
    assert await mine.unload(digest) == "aa"
    with pytest.raises(LocalError, match="not served"):
        await mine.unload("aa")


async def test_stopping_waits_for_the_report(autojump_clock: Clock) -> None:
    mine = control(Shelf())
    with trio.move_on_after(60) as waiting:
        await mine.wait_stopped()
    assert waiting.cancelled_caught
    assert await mine.obey(StopNode(), OWNER, PEER) == Report()
    began = trio.current_time()
    await mine.wait_stopped()
    assert trio.current_time() - began == STOP_DELAY


class Mesh:
    """A network that keeps the orders it is given."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, Command, bytes]] = []

    async def order(self, peer: PeerId, command: Command, key: Any) -> Report:
        self.orders.append((peer, command, key.public_key().public_bytes_raw()))
        return await control(Shelf("aa")).obey(ListModels(), OWNER, PEER)


async def test_order_is_signed_with_the_key_of_this_machine(tmp_path: Path) -> None:
    mine, mesh = control(Shelf(), directory=tmp_path), Mesh()
    with pytest.raises(LocalError, match="still starting"):
        await mine.order(PEER, StopNode())
    mine.network = mesh  # type: ignore[assignment]
    with pytest.raises(LocalError, match="meshnode owner key"):
        await mine.order(PEER, StopNode())
    key = make_owner_key(tmp_path)
    found = await mine.order(PEER, StopNode())
    assert mesh.orders == [(PEER, StopNode(), key.public_key().public_bytes_raw())]
    assert found["models"][0]["state"] == "held"
