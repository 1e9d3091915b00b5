from __future__ import annotations

import pytest
import trio
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
