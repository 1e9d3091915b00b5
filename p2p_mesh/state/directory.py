"""The data directory itself: its lock, how the commands find the running node, and how files are
written there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from p2p_mesh.core.names import MeshId
from p2p_mesh.errors import LocalError, SettingsError


class NodeFile(Struct, frozen=True, kw_only=True):
    """node.json: how the commands find the running node."""

    pid: int
    name: str
    api_url: str
    console_url: str
    token: str


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the data directory for this process. Raises LocalError, naming the node that has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(
            f"the data directory {directory} cannot be used: {error.strerror}; "
            "choose another with --data-dir"
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LocalError(_in_use(directory)) from error
        yield
    finally:
        os.close(file)


def _in_use(directory: Path) -> str:
    other = running(directory)
    who = f"{other.name} (process {other.pid})" if other else "another node"
    return f"{who} runs on {directory}; stop it, or choose another with --data-dir"


def running(directory: Path) -> NodeFile | None:
    """The node.json of a directory; None where there is none that can be read."""
    try:
        return msgspec.json.decode((directory / "node.json").read_bytes(), type=NodeFile)
    except (OSError, msgspec.MsgspecError):
        return None


@contextmanager
def published(directory: Path, node: NodeFile) -> Iterator[None]:
    """Shows the running node to the commands for as long as the context lasts."""
    path = directory / "node.json"
    write(path, json.dumps(msgspec.to_builtins(node), indent=2).encode())
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def write(path: Path, data: bytes) -> None:
    """Writes a file of mode 0600 in one step: it is there whole, or as it was, and what was
    written outlives a loss of power.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.unlink(missing_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _settle(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


def _settle(directory: Path) -> None:
    """Puts the names in a folder on disk: a file that was renamed is there under its new one."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot, and need not
            raise
    finally:
        os.close(handle)


def api_key(directory: Path) -> tuple[str, bool]:
    """The API key kept for `--listen`, and whether it was made just now."""
    path = directory / "api.key"
    try:
        key = path.read_text().strip()
        if not key:
            raise SettingsError(f"the API key {path} is empty; remove it to get a new one")
        return key, False
    except FileNotFoundError:
        key = f"mn-{secrets.token_urlsafe(24)}"
        write(path, key.encode())
        return key, True
    except (OSError, ValueError) as error:
        raise SettingsError(f"the API key {path} cannot be read: {error}") from error


def folder(directory: Path, mesh: MeshId) -> Path:
    """Where what belongs to one mesh is kept, made if need be. Raises SettingsError."""
    found = directory / "meshes" / mesh
    try:
        if not found.is_dir():
            found.mkdir(parents=True, exist_ok=True, mode=0o700)
            _settle(found.parent)
            _settle(directory)
    except OSError as error:
        raise SettingsError(f"{found} cannot be made: {error.strerror}") from error
    return found


def read(path: Path) -> bytes | None:
    """What is in a file; None where there is none. Raises SettingsError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
