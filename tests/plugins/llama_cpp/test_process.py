"""How a process beside the node is started, and what it may know."""

from __future__ import annotations

import os

import psutil
import pytest
from meshnode_llama_cpp import process
from meshnode_llama_cpp.process import environment


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
        "MALLOC_ARENA_MAX": "1",
        "PYTHONPATH": "/site",
    }


@pytest.mark.parametrize(
    ("usable", "physical", "threads"), [(1, 1, 1), (2, 2, 1), (16, 8, 8), (8, 8, 7), (4, None, 3)]
)
def test_one_processor_is_left_to_others(
    usable: int, physical: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    assert process.threads() == threads
