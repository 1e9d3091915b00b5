"""Memory as a bench holds engines to it, and as they take it. Linux, cgroup v1, root.

A process is charged for the anonymous pages that it touches and for the pages of files that it is
the first to bring in, so the page cache is dropped before a model is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from p2p_mesh.testing.memory import anonymous, cached

ROOT = Path("/sys/fs/cgroup/memory")
_CACHES = Path("/proc/sys/vm/drop_caches")
_OWN = Path("/proc/self/cgroup")
EVERY = 0.1
"""Seconds between two looks."""


class Group:
    """Processes that share a limit of memory."""

    def __init__(self, path: Path, home: Path) -> None:
        self._path = path
        self._home = home
        """Where this process is otherwise."""

    @contextmanager
    def joined(self) -> Iterator[None]:
        """This process is in the group too: what it starts meanwhile stays there."""
        _write(self._path / "cgroup.procs", os.getpid())
        try:
            yield
        finally:
            _write(self._home / "cgroup.procs", os.getpid())

    @property
    def processes(self) -> set[int]:
        """Those that are in it, without this one."""
        listed = (self._path / "cgroup.procs").read_text().split()
        return set(map(int, listed)) - {os.getpid()}


@contextmanager
def group(limit: int | None) -> Iterator[Group]:
    """A group of so many bytes, page cache included; None: it only counts. Whatever is still in it
    when the context is left stays alive, and has no limit then. RuntimeError where there is no way.
    """
    home = ROOT / home_of(_OWN.read_text())
    path = ROOT / f"meshnode-bench-{os.getpid()}"
    try:
        path.mkdir()
        if limit is not None:
            _write(path / "memory.limit_in_bytes", limit)
    except OSError as error:
        raise RuntimeError(
            f"memory cannot be limited here ({error}): this bench needs root, and cgroup v1 with a "
            f"memory controller at {ROOT}"
        ) from error
    made = Group(path, home)
    try:
        yield made
    finally:
        for pid in made.processes:
            with suppress(OSError):
                _write(home / "cgroup.procs", pid)
        path.rmdir()


def home_of(text: str) -> str:
    """The memory group in /proc/PID/cgroup, below the root."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return path.strip("/")
    raise RuntimeError("this process is in no memory group of cgroup v1")


def _write(file: Path, value: int) -> None:
    file.write_text(str(value))


async def drop_caches() -> None:
    """Nothing of any file is in memory afterwards, but what is mapped or dirty."""
    await trio.to_thread.run_sync(os.sync)
    await trio.to_thread.run_sync(_CACHES.write_text, "3")


class Samples:
    """The most memory that processes took for a model at one time."""

    def __init__(self, file: Path, group: Group) -> None:
        self._file, self._group = file, group
        self.most = 0

    async def watch(self) -> None:
        """Looks until it is cancelled."""
        while True:
            self.most = max(self.most, await trio.to_thread.run_sync(self._look))
            await trio.sleep(EVERY)

    def _look(self) -> int:
        return cached(self._file) + sum(map(anonymous, self._group.processes))
