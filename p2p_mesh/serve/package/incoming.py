"""An artifact that is being received, piece by piece, in any order and over several starts. It is
written aside, and gets its name when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import trio

from p2p_mesh.core.package import Artifact, piece_count, piece_range, pieces_of
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import Job, look_at, whole

FOLDER = ".incoming"
"""Where artifacts are written aside, in the folder of their package."""

PART = ".part"
"""What the name of such a file ends with. It has holes where nothing came yet."""

Bytes = bytes | bytearray | memoryview


class Incoming:
    """Two files: the pieces, each in its place, and the numbers of those that are there."""

    def __init__(self, artifact: Artifact, hashes: Sequence[str] | None, target: Path) -> None:
        """`hashes`: of the pieces; None: they are not known, and only the whole can be checked."""
        self.artifact = artifact
        self._hashes = hashes
        self._target = target
        aside = _aside(target, artifact, hashes or ())
        self._data = aside.with_suffix(PART)
        self._list = aside.with_suffix(".have")
        self._lock = threading.Lock()
        self._have = self._read()
        self._sure: set[int] = set()
        """Of them, those that were checked since this node started."""
        self.is_finished = False

    @property
    def received(self) -> int:
        """Bytes that are here, and have been checked as far as can be."""
        size = self.artifact.artifact_bytes
        return sum(piece_range(size, number)[1] for number in self._have)

    def missing(self) -> tuple[int, ...]:
        """The numbers of the pieces that are still to come."""
        count = piece_count(self.artifact.artifact_bytes)
        return tuple(number for number in range(count) if number not in self._have)

    async def check(self, pieces: Collection[int]) -> None:
        """Reads again what an earlier start left of these pieces: one that is not what its hash
        says is missing from now on. For who uses pieces before the whole is here.
        """
        await trio.to_thread.run_sync(self._check, pieces)

    def read(self, offset: int, length: int) -> bytes:
        """A range of the pieces that are here. Blocks; raises ModelError where one of them is not,
        or the file cannot be read.
        """
        wanted = pieces_of(self.artifact.artifact_bytes, [(offset, length)])
        if not (self.is_finished or wanted <= self._have):
            raise ModelError(f"{length} bytes from {offset} of {self.artifact.path} are not here")
        data = self._pread(offset, length)
        if len(data) != length:
            raise ModelError(f"{self._data} was cut off while it was in use")
        return data

    async def put(self, piece: int, data: Bytes) -> bool:
        """Keeps a piece. False: it is not what it should be, and whoever sent it is at fault.
        Raises ModelError where it cannot be written.
        """
        return await trio.to_thread.run_sync(self._put, piece, data)

    async def finish(self) -> bool:
        """Gives the file its name, once no piece is missing. False: the whole is not what it should
        be, which only shows here where the hashes of pieces are not known; all of it is missing.
        """
        if self.missing():
            return False
        if self._hashes is None and not await self._is_right():
            await self.forget()
            return False
        await trio.to_thread.run_sync(self._rename)
        self.is_finished = True
        return True

    async def forget(self) -> None:
        """Drops what has come."""
        await trio.to_thread.run_sync(self._drop)

    def _put(self, piece: int, data: Bytes) -> bool:
        size = self.artifact.artifact_bytes
        if not 0 <= piece < piece_count(size):
            return False
        offset, length = piece_range(size, piece)
        if len(data) != length or not self._is_expected(piece, data):
            return False
        try:
            self._write(offset, data)
            with self._lock:
                if piece not in self._have:
                    with self._list.open("ab") as file:
                        file.write(struct.pack("<I", piece))
                    self._have.add(piece)
                self._sure.add(piece)
        except OSError as error:
            raise ModelError(f"{self._data} cannot be written: {error.strerror}") from error
        return True

    def _check(self, pieces: Collection[int]) -> None:
        for piece in self._have & set(pieces) - self._sure:
            try:
                data = self._pread(*piece_range(self.artifact.artifact_bytes, piece))
            except ModelError:
                data = b""
            with self._lock:
                (self._sure.add if self._is_expected(piece, data) else self._have.discard)(piece)

    def _pread(self, offset: int, length: int) -> bytes:
        for path in (self._data, self._target):  # it may get its name meanwhile
            try:
                with path.open("rb", buffering=0) as file:
                    return os.pread(file.fileno(), length, offset)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        raise ModelError(f"{self._data} is gone")

    def _is_expected(self, piece: int, data: Bytes) -> bool:
        return self._hashes is None or hashlib.sha256(data).hexdigest() == self._hashes[piece]

    def _write(self, offset: int, data: Bytes) -> None:
        self._data.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._data, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(handle, rest, offset)
                rest, offset = rest[written:], offset + written
        finally:
            os.close(handle)

    async def _is_right(self) -> bool:
        job = Job()
        try:
            return await trio.to_thread.run_sync(partial(self._hash, job), abandon_on_cancel=True)
        finally:
            job.stop()

    def _hash(self, job: Job) -> bool:
        try:
            found = job.hash({"": whole(look_at(self._data))})
        except (OSError, ModelError):
            return False
        return found[""].sha256 == self.artifact.sha256

    def _rename(self) -> None:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._data.replace(self._target)
            self._list.unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(f"{self._target} cannot be written: {error.strerror}") from error

    def _drop(self) -> None:
        with self._lock:
            self._have.clear()
            self._sure.clear()
            self._data.unlink(missing_ok=True)
            self._list.unlink(missing_ok=True)

    def _read(self) -> set[int]:
        """What an earlier start left. The list is written after the data; what was lost between
        them, when the machine fell, shows when the whole is checked.
        """
        count = piece_count(self.artifact.artifact_bytes)
        try:
            have = {number for (number,) in struct.iter_unpack("<I", _whole(self._list))}
            length = self._data.stat().st_size
        except OSError:
            return set()
        size = self.artifact.artifact_bytes
        return {one for one in have if one < count and sum(piece_range(size, one)) <= length}


def _whole(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: len(data) & ~3]


def _aside(target: Path, artifact: Artifact, hashes: Sequence[str]) -> Path:
    """Named by its content: two artifacts of one content, at two paths, have two such files. What
    was right by one list of pieces is not so by another.
    """
    folder = target.parents[artifact.path.count("/")]
    name = hashlib.sha256("\n".join((artifact.path, *hashes)).encode()).hexdigest()[:16]
    return folder / FOLDER / f"{artifact.sha256[:32]}-{name}"
