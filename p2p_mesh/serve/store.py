"""The model files of this node: what a name means, what a file holds, and its digest."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import trio
from msgspec.structs import replace

from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.names import Digest, ModelId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.sizing import kv_bytes_per_token, sliding, state_bytes
from p2p_mesh.errors import ModelError

BUNDLED = Path(__file__).parent / "models"
DEFAULT_MODEL = "meshnode-demo"

_CHUNK = 1 << 22


def bundled() -> tuple[str, ...]:
    """The names of the models that come with meshnode."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("*.gguf")))


def find(reference: str) -> Path:
    """The file that `--model REFERENCE` means: a bundled model's name, or a path."""
    if reference in bundled():
        return BUNDLED / f"{reference}.gguf"
    path = Path(reference).expanduser()
    if not path.exists():
        raise ModelError(
            f"there is no model {reference!r}: give the path of a GGUF file, "
            f"or the name of a bundled model ({', '.join(bundled())})"
        )
    if not path.is_file():
        raise ModelError(f"{path} is no file; give the path of a GGUF file")
    return path.resolve()


def read(path: Path) -> ModelFile:
    """The model in a file, by its header. Raises ModelError, with the path."""
    if not path.stem.isprintable():
        raise ModelError(f"{str(path)!r} cannot be used: rename it, its name becomes the model's")
    try:
        size, header = _header(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ModelError as error:
        raise ModelError(f"{path} cannot be used: {error}") from error
    window, window_bytes = sliding(header)
    return ModelFile(
        id=ModelId(path.stem),
        path=str(path),
        size_bytes=size,
        architecture=header.architecture,
        context_length=header.number("context_length"),
        kv_bytes_per_token=kv_bytes_per_token(header),
        state_bytes=state_bytes(header),
        window=window,
        window_bytes_per_token=window_bytes,
    )


def _header(path: Path) -> tuple[int, Header]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ModelError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return size, read_header(data, size)


def select(references: Sequence[str], digests: Digests) -> tuple[ModelFile, ...]:
    """The models that references mean, each once, under names that differ.

    Two files of one name become `id@<8 hex of the digest>`.
    """
    models = [read(path) for path in dict.fromkeys(find(one) for one in references)]
    names = [model.id for model in models]
    return tuple(
        model if names.count(model.id) == 1 else _distinct(model, digests) for model in models
    )


def _distinct(model: ModelFile, digests: Digests) -> ModelFile:
    digest = digests.compute(Path(model.path))
    return replace(model, id=ModelId(f"{model.id}@{digest[:8]}"), digest=digest)


class Digests:
    """SHA-256 of files, computed once and remembered by inode, size and time."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()

    async def of(self, path: Path) -> Digest:
        """The digest, computed in a thread: seconds for gigabytes."""
        return await trio.to_thread.run_sync(self.compute, path, abandon_on_cancel=True)

    def compute(self, path: Path) -> Digest:
        stat = path.stat()
        key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"
        known = self._read().get(key)
        if known is None:
            known = _sha256(path)
            with self._lock:  # several files may be read at once, in threads
                self._write({**self._read(), key: known})
        return Digest(known)

    def _read(self) -> dict[str, str]:
        """What is remembered; a cache that is damaged is a cache that is empty."""
        try:
            known = json.loads(self._cache.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, str]) -> None:
        aside = self._cache.with_suffix(f".{os.getpid()}")
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(known))
            aside.replace(self._cache)
        except OSError:
            return  # a read-only cache costs a computation each start, and nothing else


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()
