from __future__ import annotations

import socket
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from meshnode_expert_shards import worker
from meshnode_expert_shards.frames import Count
from meshnode_expert_shards.worker import Mapped, count, tokenized
from meshnode_llama_cpp.library import start

from p2p_mesh.core.records import ChatPrompt, TextPrompt
from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_moe

CHAT = ChatPrompt(messages=({"role": "user", "content": "Hello"},))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("models") / "moe.gguf"
    write_moe(found)
    return found


def mapped(path: Path) -> Mapped:
    start()
    return Mapped(str(path), name="moe", progress=lambda _: None)


def test_chats_are_written_by_the_template_of_the_model(path: Path) -> None:
    model = mapped(path)
    text, chat = tokenized(model, [TextPrompt(text="Hello"), CHAT])
    assert text == model.tokenize("Hello")
    spelled = [model.spelled(token) for token in chat]
    assert spelled.count(b"<|im_start|>") == 2
    assert b"".join(spelled).endswith(b"assistant\n")


def test_a_chat_that_the_template_refuses_is_left_out(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf", template="{{ raise_exception('never') }}")
    assert len(tokenized(mapped(tmp_path / "moe.gguf"), [CHAT, TextPrompt(text="Hello")])) == 1


def command(path: Path) -> Count:
    return Count(
        name="moe", path=str(path), family="any", experts=16, prompts=(CHAT,), tokens=64,
        context=64, threads=1,
    )  # fmt: skip


def test_prompts_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf", template="{{ raise_exception('never') }}")
    start()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ModelError, match="can read none of the prompts"):
        count(command(tmp_path / "moe.gguf"), ours)


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"GGUF and nothing more")
    start()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ModelError, match=r"llama\.cpp does not load moe"):
        count(command(tmp_path / "none.gguf"), ours)


def test_the_process_ends_with_whoever_started_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = Popen(
            [sys.executable, "-P", "-m", worker.__name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env={"PYTHONPATH": ":".join(sys.path)}, stderr=PIPE,
        )  # fmt: skip
    process.communicate(timeout=30)
    assert process.returncode == 0
