"""llama.cpp's own programs, as what we are measured against: built once, and run.

It comes from the sdist of the very llama-cpp-python that is installed here, so that both compute
with the same code. The options it runs with are those under which it is fastest in what we
measure; what is left at its default is at the same default in ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import venv
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import trio
from load import Server

PACKAGE = "llama-cpp-python"
LOADING = 60.0
"""Seconds that a server has to load its model."""

Program = Literal["llama-server", "llama-bench", "ggml-rpc-server", "test-llama-archs"]
_PROGRAMS: tuple[Program, ...] = get_args(Program)
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=ON",  # test-llama-archs, which writes a model of each architecture
    "-DGGML_RPC=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What both servers are told alike."""

    model: Path
    threads: int
    context: int
    """Tokens of one sequence."""
    slots: int


async def build(cache: Path, say: Callable[[str], None], program: Program = "llama-server") -> Path:
    """A program of llama.cpp's in the cache folder; all are made there where one is missing."""
    folder = cache / f"llama.cpp-{version(PACKAGE)}"
    programs = folder / "build" / "bin"
    if not all((programs / name).exists() for name in _PROGRAMS):
        say("building llama.cpp's programs, once: about 10 minutes on 2 cores")
        folder.mkdir(parents=True, exist_ok=True)
        path = await _tools(cache / "tools")
        if not (folder / "source").exists():
            await _fetch(folder)
        await _compile(folder, path)
    return programs / program


async def _tools(folder: Path) -> str:
    """A PATH with cmake and ninja; what the system lacks is installed beside the rest."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    missing = [name for name in ("cmake", "ninja") if not shutil.which(name, path=path)]
    if missing:
        venv.create(folder, with_pip=True)
        await _run([str(folder / "bin/pip"), "install", "--quiet", *missing], path)
    return path


async def _fetch(folder: Path) -> None:
    """The sdist's files, as `source`; that name appears only when they are all there."""
    pinned = f"{PACKAGE}=={version(PACKAGE)}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
    await _run([*pip, "--dest", str(folder), pinned], os.environ["PATH"])
    _unpack(folder)


def _unpack(folder: Path) -> None:
    unpacked = folder / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(unpacked, filter="data")
    next(unpacked.iterdir()).rename(folder / "source")
    unpacked.rmdir()


async def _compile(folder: Path, path: str) -> None:
    source, target = str(folder / "source/vendor/llama.cpp"), str(folder / "build")
    await _run(["cmake", "-S", source, "-B", target, "-G", "Ninja", *_OPTIONS], path)
    await _run(["cmake", "--build", target, "--target", *_PROGRAMS], path)


async def _run(command: Sequence[str], path: str) -> None:
    """What it says goes to stderr; a cancelled one ends with all that it has started."""

    async def end(process: trio.Process) -> None:
        os.killpg(process.pid, signal.SIGTERM)

    await trio.run_process(
        command,
        stdout=sys.stderr,
        env={**os.environ, "PATH": path},
        start_new_session=True,
        deliver_cancel=end,
    )


@asynccontextmanager
async def run_server(program: Path, terms: Terms, log: Path) -> AsyncIterator[Server]:
    """A llama-server with its model loaded, gone when the context is left."""
    port = _free_port()
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            [str(program), *_arguments(terms, port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={name: value for name, value in os.environ.items() if "LLAMA_" not in name},
        )
        try:
            if not await _loaded(process, port):
                raise RuntimeError(f"llama-server ended: {_end_of(log)}")
            yield Server(port, terms.model.stem, process.pid)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@asynccontextmanager
async def run_rpc(program: Path, log: Path) -> AsyncIterator[str]:
    """A ggml-rpc-server with one thread on the CPU; its address."""
    port = _free_port()
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            [str(program), "--host", "127.0.0.1", "--port", str(port), "--threads", "1",
             "--device", "CPU"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )  # fmt: skip
        try:
            await _listening(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def bench_rate(program: Path, model: Path, tokens: int, *more: str) -> float:
    """Tokens a second that llama-bench writes with one thread. RuntimeError if it does not."""
    command = [
        str(program), "--model", str(model), "--threads", "1", "--n-prompt", "0",
        "--n-gen", str(tokens), "--repetitions", "1", "--output", "json", *more,
    ]  # fmt: skip
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"llama-bench ended: {done.stderr[-2000:].decode(errors='replace')}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


async def _listening(port: int) -> None:
    with trio.fail_after(LOADING):
        while True:
            with suppress(OSError):
                async with await trio.open_tcp_stream("127.0.0.1", port):
                    return
            await trio.sleep(0.05)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _arguments(terms: Terms, port: int) -> list[str]:
    return [
        "--model", str(terms.model), "--ctx-size", str(terms.context * terms.slots),
        "--parallel", str(terms.slots), "--threads", str(terms.threads),
        "--threads-batch", str(terms.threads), "--host", "127.0.0.1", "--port", str(port),
        "--no-ui", "--offline", "--log-verbosity", "1",
        "--cache-ram", "0",  # else each prompt of a slot is copied aside before the next
    ]  # fmt: skip


async def _loaded(process: trio.Process, port: int) -> bool:
    """Waits until it is ready; False if it ends instead."""
    with trio.fail_after(LOADING):
        while process.poll() is None:
            if await _is_ready(port):
                return True
            await trio.sleep(0.05)
    return False


async def _is_ready(port: int) -> bool:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            return bytes(await stream.receive_some()).startswith(b"HTTP/1.1 200")
    except (OSError, trio.BrokenResourceError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
