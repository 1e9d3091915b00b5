"""An engine process that is stopped, and never dies by itself."""

import os
import signal
from pathlib import Path
from random import Random

import psutil
import pytest
import trio
from meshnode_llama_cpp.backend import LlamaCpp

from p2p_mesh.core import silence
from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, TokenPrompt
from p2p_mesh.errors import EngineDied
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.serve import hardware, pulse
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.testing.mesh import NoMesh
from p2p_mesh.testing.models import Shape, write_model


@pytest.fixture
def hosted(tmp_path: Path) -> Hosted:
    said: list[Entry] = []
    model = write_model(tmp_path / "tiny.gguf", shape=Shape(context=8192), endless=True)
    return Hosted(
        Load(model, threads=1), [LlamaCpp()], memory=Memory(hardware.measure(None)), mesh=NoMesh(),
        journal=Journal(said.append), rng=Random(1), changed=lambda: None,
    )  # fmt: skip


async def test_stopped_engine_is_killed_and_replaced(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "QUIET", 1.0)
    monkeypatch.setattr(pulse, "LOOK_EVERY", 0.2)
    asked = InferenceRequest(
        id=RequestId("r"), model=ModelId("tiny"), prompt=TokenPrompt(tokens=(1, 20, 30))
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hosted.run)
            await hosted.wait_settled()
            about = hosted.description
            assert about is not None
            assert about.pid is not None
            async with hosted.generate(asked) as deltas:
                await anext(deltas)
                os.kill(about.pid, signal.SIGSTOP)
                with pytest.raises(EngineDied):
                    async for _ in deltas:
                        pass
            assert not psutil.pid_exists(about.pid)
            while hosted.state != "ready":
                await trio.sleep(0.1)
            async with hosted.generate(asked) as deltas:
                assert (await anext(deltas)).tokens
            nursery.cancel_scope.cancel()
