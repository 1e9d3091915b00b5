from __future__ import annotations

import os

import psutil
import pytest
import trio
from meshnode_llama_cpp import engine
from meshnode_llama_cpp.engine import Deltas, Word, environment

from p2p_mesh.core.records import Delta
from p2p_mesh.errors import EngineDied


def test_an_engine_knows_no_secret() -> None:
    ours = {
        "PATH": "/bin",
        "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "0",
        "MESHNODE_API_KEY": "secret",
        "OPENAI_API_KEY": "secret",
        "LD_PRELOAD": "/tmp/evil.so",
    }
    assert environment(ours, ["", "/site"]) == {
        "PATH": "/bin",
        "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "0",
        "GGML_NO_BACKTRACE": "1",
        "PYTHONPATH": "/site",
    }


async def test_deltas_end_with_their_channel() -> None:
    send, receive = trio.open_memory_channel[Word](2)
    send.send_nowait(Delta(text="a"))
    send.close()
    assert [delta async for delta in Deltas(receive)] == [Delta(text="a")]


async def test_an_error_is_raised_where_the_answer_is_read() -> None:
    send, receive = trio.open_memory_channel[Word](2)
    send.send_nowait(Delta(text="a"))
    send.send_nowait(EngineDied("gone"))
    deltas = Deltas(receive)
    assert (await anext(deltas)).text == "a"
    with pytest.raises(EngineDied, match="gone"):
        await anext(deltas)


@pytest.mark.parametrize(
    ("usable", "physical", "threads"), [(1, 1, 1), (2, 2, 1), (16, 8, 8), (8, 8, 7), (4, None, 3)]
)
def test_one_processor_is_left_to_others(
    usable: int, physical: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    assert engine._threads() == threads
