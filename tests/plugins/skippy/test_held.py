"""What becomes of a stage that is held, and of its links."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from meshnode_skippy import lease
from meshnode_skippy.lease import (
    ACTIVATIONS,
    Broken,
    Commit,
    Committed,
    Hello,
    Loaded,
    LoadStage,
    Prepared,
    Renew,
)

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import ModelError, RemoteError, Unavailable
from p2p_mesh.serve.backend import Limits, Stream
from tests.plugins.skippy.asking import SECRET, A, B, held, leased, linked, prepare
from tests.plugins.skippy.town import Town, until


async def test_a_stage_is_prepared_loaded_and_given_back(pair: Town, deep: ModelFile) -> None:
    memory = pair.nodes[B].memory
    async with leased(pair, await prepare(pair, deep)) as asker:
        prepared = await asker.hear()
        assert isinstance(prepared, Prepared)
        assert prepared.memory_bytes == memory._leased > 0
        await asker.tell(LoadStage())
        loaded = await asker.hear()
        assert isinstance(loaded, Loaded)
        assert (loaded.numerics, loaded.device) == ("stand-in", "cpu")
    await until(lambda: not memory._leased)
    assert pair.nodes[B].said == [
        ("stage_held", "holding layers 3-5 of deep for a"),
        ("stage_released", "no longer holding layers 3-5 of deep for a: its lease has ended"),
    ]


async def test_the_users_of_a_node_say_how_it_computes_for_others(
    pair: Town, deep: ModelFile
) -> None:
    async def notes(**fields: Any) -> tuple[str, ...]:
        async with leased(pair, await prepare(pair, deep, **fields)) as asker:
            await asker.hear()
            await asker.tell(LoadStage())
            loaded = await asker.hear()
        await until(lambda: not pair.nodes[B].memory._leased)
        assert isinstance(loaded, Loaded)
        return loaded.notes

    assert await notes(threads=1) == ("threads 1, GPU layers None",)
    assert await notes(threads=9) == ("threads 2, GPU layers None",)
    pair.nodes[B].limited = Limits(threads=2, gpu_layers=0)
    assert await notes(threads=1) == ("threads 2, GPU layers 0",)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start": 3, "end": 12, "stages": 4}, "the model has 9 layers"),
        ({"start": 6, "end": 9, "stages": 4}, "only the last of 4 stages"),
        ({"stage": 2}, "only the last of 3 stages"),
    ],
)
async def test_layers_that_can_be_no_stage_are_refused(
    fields: dict[str, Any], reason: str, pair: Town, deep: ModelFile
) -> None:
    async with leased(pair, await prepare(pair, deep, **fields)) as asker:
        with pytest.raises(ModelError, match=reason):
            await asker.hear()
    assert not pair.nodes[B].memory._leased


async def test_a_package_that_nobody_has_is_missing(pair: Town, deep: ModelFile) -> None:
    nothing = PackageRef(manifest=Digest("0" * 64), pieces="")
    async with leased(pair, await prepare(pair, deep, package=nothing)) as asker:
        with pytest.raises(Unavailable, match="nobody has that package"):
            await asker.hear()


async def test_memory_that_is_not_there_is_not_leased(town: Town, deep: ModelFile) -> None:
    town.node("a")
    town.node("b", memory=1000)
    async with leased(town, await prepare(town, deep)) as asker:
        with pytest.raises(Unavailable, match="wanted"):
            await asker.hear()


async def test_an_order_out_of_turn_ends_the_lease(pair: Town, deep: ModelFile) -> None:
    commit = Commit(epoch=1, next=A, stage=0, secret=SECRET)
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        await asker.tell(commit)
        with pytest.raises(RemoteError, match="out of turn"):
            await asker.hear()
    await until(lambda: not pair.nodes[B].memory._leased)


async def test_a_coordinator_that_is_silent_loses_its_lease(
    pair: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE", 0.3)
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        for _ in range(4):
            await trio.sleep(0.1)
            await asker.tell(Renew())
        assert pair.nodes[B].memory._leased
        with pytest.raises(Unavailable):
            await asker.hear()
    assert not pair.nodes[B].memory._leased


async def test_a_stage_that_nobody_goes_on_with_is_given_back(
    pair: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "IDLE", 0.1)
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        with pytest.raises(Unavailable, match="nobody went on"):
            await asker.hear()


async def test_a_bad_stage_is_the_models_fault(pair: Town, deep: ModelFile) -> None:
    async with leased(pair, await prepare(pair, deep, model="bad")) as asker:
        assert isinstance(await asker.hear(), Prepared)
        await asker.tell(LoadStage())
        with pytest.raises(ModelError, match="a bad model"):
            await asker.hear()


async def test_a_newer_link_takes_the_place_of_the_last_one(pair: Town, deep: ModelFile) -> None:
    async with held(pair, deep) as asker, linked(pair, epoch=3) as stream:
        lease.read_welcome(await stream.receive())
        async with linked(pair, epoch=3) as again:
            with pytest.raises(Unavailable, match="epoch 3 is over"):
                lease.read_welcome(await again.receive())
        async with linked(pair, epoch=4) as newer:
            lease.read_welcome(await newer.receive())
        assert await asker.hear() == Broken(epoch=4, reason="the stream was closed")


async def test_a_stage_that_is_not_loaded_takes_no_link(pair: Town, deep: ModelFile) -> None:
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        async with linked(pair) as stream:
            with pytest.raises(Unavailable, match="not loaded"):
                lease.read_welcome(await stream.receive())


async def test_a_next_stage_that_is_not_there_is_told(pair: Town, deep: ModelFile) -> None:
    async with held(pair, deep) as asker:
        await asker.tell(Commit(epoch=1, next=A, stage=2, secret=SECRET))
        assert await asker.hear() == Broken(epoch=1, reason="this node does not hold that stage")
        await asker.tell(Commit(epoch=2, next=PeerId("z"), stage=2, secret=SECRET))
        assert await asker.hear() == Broken(epoch=2, reason="z is not known")


async def test_frames_pass_through_a_stage(pair: Town, deep: ModelFile) -> None:
    came: list[bytes] = []

    async def next_stage(stream: Stream, peer: PeerId) -> None:
        hello: Hello = decode(await stream.receive(), Hello)
        assert (hello.stage, hello.secret, hello.epoch) == (2, b"n" * 16, 1)
        await stream.send(encode(lease.Welcome()))
        await stream.listen(came.append)

    pair.nodes[A].serve(ACTIVATIONS, next_stage)
    async with held(pair, deep) as asker:
        await asker.tell(Commit(epoch=1, next=A, stage=2, secret=b"n" * 16))
        assert await asker.hear() == Committed(epoch=1)
        async with linked(pair) as stream:
            lease.read_welcome(await stream.receive())
            await stream.send((1).to_bytes(4, "little") * 3)
            await until(lambda: came)
    assert came[0][:8] == (1).to_bytes(4, "little") * 2
