"""The worker of a stage, seen from its node."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import trio
from meshnode_skippy import process
from meshnode_skippy.frames import OpenStage, Unlinked
from meshnode_skippy.process import StageProcess, run_stage
from meshnode_skippy.wiring import Wiring

from p2p_mesh.core.silence import Slack
from p2p_mesh.errors import EngineDied, ModelError
from tests.plugins.skippy.stand_in import ROW
from tests.plugins.skippy.town import STAND_IN


def command(**fields: Any) -> OpenStage:
    wiring = Wiring(entry="rows", blocks=1, exit_block=0)
    plain = {
        "name": "m", "path": "p", "metadata": "m", "wiring": wiring, "stage": 1, "stages": 2,
        "context": 64, "slots": 2, "threads": 1, **fields,
    }  # fmt: skip
    return OpenStage(**plain)


def nothing(share: float) -> None: ...


@pytest.fixture
async def stage() -> AsyncIterator[StageProcess]:
    async with run_stage(command(), progress=nothing, worker=STAND_IN) as running:
        yield running


async def test_a_stage_is_loaded_and_no_process_is_left() -> None:
    seen: list[float] = []
    async with run_stage(command(), progress=seen.append, worker=STAND_IN) as stage:
        about = stage.describe()
        assert psutil.pid_exists(about.pid)
    assert (about.context, about.slots, about.numerics) == (64, 2, "stand-in")
    assert seen == [0.5]
    assert not psutil.pid_exists(about.pid)
    assert stage.link.fileno() == -1


async def test_the_link_is_the_workers(stage: StageProcess) -> None:
    stage.link.send(ROW.size.to_bytes(4, "little") + ROW.pack(1, 2, 3))
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(stage.link)
    assert stage.link.recv(100)[4:] == ROW.pack(1, 2, (3 * 31 + 7) % 1009)


async def test_a_bad_stage_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="a bad model"):
        async with run_stage(command(name="bad"), progress=nothing, worker=STAND_IN):
            pass


async def test_a_worker_that_dies_is_seen_at_once(stage: StageProcess) -> None:
    pid = stage.describe().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with trio.fail_after(2):
        assert "SIGKILL" in await stage.wait_ended()


async def test_one_that_is_ended_says_why(stage: StageProcess) -> None:
    await stage.end("layers 3 to 6 were lost")
    assert await stage.wait_ended() == "layers 3 to 6 were lost"
    with pytest.raises(EngineDied, match="layers 3 to 6"):
        await stage.query(None)  # type: ignore[arg-type]


async def test_direct_links_are_asked_for(stage: StageProcess) -> None:
    assert await stage.listen(bytes(32), "") == 0
    assert not await stage.dial(["127.0.0.1"], 1, bytes(32))


async def test_a_worker_that_is_busy_is_not_waited_for(
    stage: StageProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LISTENED", 0.05)
    pid = stage.describe().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert await stage.listen(bytes(32), "") == 0
    os.kill(pid, signal.SIGCONT)


async def test_a_direct_link_that_breaks_is_told(stage: StageProcess) -> None:
    told: list[str] = []
    stage.unlinked = told.append
    stage._take(Unlinked("to the next stage: broken pipe"))
    assert told == ["to the next stage: broken pipe"]


async def test_a_worker_that_is_frozen_is_ended_and_the_next_has_more_time(
    stage: StageProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "QUIET", 0.2)
    monkeypatch.setattr(process, "PING_EVERY", 0.01)
    pid, slack = stage.describe().pid, Slack()
    assert pid is not None
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.watch, slack)
            with trio.move_on_after(0.1):
                raise AssertionError(await stage.wait_ended())
            os.kill(pid, signal.SIGSTOP)
            assert "gave no sign of life for 0.2 s" in await stage.wait_ended()
    assert not psutil.pid_exists(pid)
    assert slack.times > 1
