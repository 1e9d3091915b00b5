"""A tiny model of every architecture, as llama.cpp's own tests write them."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import trio
from peer import build

from p2p_mesh.core.gguf import read_header
from p2p_mesh.settings import cache_dir


async def make(folder: Path, say: Callable[[str], None]) -> None:
    """Writes them: some 130 files, 0.9 GB."""
    program = await build(cache_dir() / "bench", say, "test-llama-archs")
    say("writing the fixtures")
    await trio.Path(folder).mkdir()
    await trio.run_process([str(program), "-o", str(folder)], stdout=sys.stderr)


def has_experts(path: Path) -> bool:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return any("_exps." in one.name for one in read_header(data, len(data)).tensors)
