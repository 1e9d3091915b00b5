"""The models of this node: what a reference means, what is in it, and its digest. A model is a GGUF
file, several that belong together, or a package (serve/package).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from msgspec.structs import replace

from p2p_mesh.core.experts.known import shard_of
from p2p_mesh.core.experts.layout import layout
from p2p_mesh.core.gguf import Header
from p2p_mesh.core.names import Digest, ModelId
from p2p_mesh.core.package import MANIFEST
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.reference import is_hub, read_hub, split_name
from p2p_mesh.core.sizing import kv_bytes_per_token, query_heads, sliding, state_bytes
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.package import published
from p2p_mesh.serve.package.folder import Described, describe, is_package
from p2p_mesh.serve.package.source import files_of, read_file, read_source

BUNDLED = Path(__file__).parent / "models"
DEFAULT_MODEL = "meshnode-demo"

PROJECTOR = "clip"
"""The architecture that all projectors name, for sounds too."""

MAX_STANDBY = 100
"""Files that stand by: an announcement has room for so many beside the models."""

_LONGEST = 256

_CHUNK = 1 << 22


def bundled() -> tuple[str, ...]:
    """The names of the models that come with meshnode."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("*.gguf")))


def find(reference: str, packages: Path | None = None) -> Path:
    """The file or package that `--model REFERENCE` means: a bundled model's name, a path, or what
    is published on a hub, which is then in the cache `packages`. Raises ModelError, and Unavailable
    for a hub that is out of reach.
    """
    if reference in bundled():
        return BUNDLED / f"{reference}.gguf"
    if is_hub(reference):
        if packages is None:
            raise ModelError(f"{reference} is a package: only a model may be one")
        return published.fetch(read_hub(reference), packages, Hub())
    path = _path(reference)
    if not os.path.exists(path):
        raise ModelError(
            f"there is no model {reference!r}: give the path of a GGUF file, "
            f"or the name of a bundled model ({', '.join(bundled())})"
        )
    if not path.is_file() and not is_package(path):
        raise ModelError(
            f"{path} is no file, and no package; give the path of a GGUF file, or of a folder with "
            f"a {MANIFEST}"
        )
    return path


def read(path: Path) -> ModelFile:
    """The model in a file (the first, where it is split), or in the folder of a package, by its
    header. Raises ModelError, with the path.
    """
    if not path.stem.isprintable():
        raise ModelError(f"{str(path)!r} cannot be used: rename it, its name becomes the model's")
    try:
        return _package(path) if path.is_dir() else _file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ModelError as error:
        raise ModelError(f"{path} cannot be used: {error}") from error


def _file(path: Path) -> ModelFile:
    source = read_source(path)
    parts = split_name(path.name)
    return _model(path, parts[0] if parts else path.stem, source.size, source.header)


def _package(path: Path) -> ModelFile:
    found = describe(path)
    model = _model(path, found.name, found.manifest.total_bytes, found.header)
    return replace(_with_layers(model, found), digest=found.digest)


def _with_layers(model: ModelFile, found: Described) -> ModelFile:
    """The experts of a package, by those of its layers that are here: the others have as many."""
    experts = found.header.number("expert_count")
    if experts <= 0:
        return model
    here = {one: header for one in found.manifest.layers
            if (header := _header(Path(model.path, one.path))) is not None}  # fmt: skip
    tensors = tuple(tensor for header in here.values() for tensor in header.tensors)
    model = _with_experts(model, Header(found.header.metadata, tensors))
    layers = found.manifest.layers
    whole, held = (sum(one.tensor_bytes for one in some) for some in (layers, here))
    if not model.experts:
        used = max(0, found.header.number("expert_used_count"))
        is_known = len(here) == len(layers)
        return model if is_known else replace(model, experts=experts, experts_used=used)
    return replace(
        model,
        expert_layers=round(model.expert_layers * len(layers) / len(here)),
        expert_bytes=min(model.size_bytes, model.expert_bytes * whole // max(1, held)),
    )


def _header(path: Path) -> Header | None:
    try:
        return read_file(path).header
    except (OSError, ModelError):
        return None  # it is fetched when it is wanted


def _model(path: Path, name: str, size: int, header: Header) -> ModelFile:
    window, window_bytes = sliding(header)
    known = shard_of(header)
    described = ModelFile(
        id=ModelId(name),
        path=str(path),
        size_bytes=size,
        architecture=header.architecture,
        context_length=header.number("context_length"),
        kv_bytes_per_token=kv_bytes_per_token(header),
        state_bytes=state_bytes(header),
        window=window,
        window_bytes_per_token=window_bytes,
        heads=query_heads(header),
        shard=known.shard if known else None,
    )
    return _with_experts(described, header)


def _with_experts(model: ModelFile, header: Header) -> ModelFile:
    """Whose experts are in a form that is not known here is a model like any other: it is served
    whole, or in stages.
    """
    try:
        found = layout(header)
    except ModelError:
        return model
    if found is None:
        return model
    return replace(
        model,
        experts=found.experts,
        experts_used=found.used,
        expert_layers=len(found.layers),
        expert_bytes=found.expert_bytes,
    )


@dataclass(frozen=True, slots=True)
class Stock:
    """What the settings name: models that are served, files that stand by, and models that this
    machine has no file of.
    """

    models: tuple[ModelFile, ...] = ()
    standby: tuple[ModelFile, ...] = ()
    wishes: tuple[ModelId, ...] = ()
    notes: tuple[str, ...] = ()
    """Why files of a standby folder are left out."""


def select(references: Sequence[str], digests: Digests) -> tuple[ModelFile, ...]:
    """The models that references mean, each once, under names that differ.

    Two files of one name become `id@<8 hex of the digest>`.
    """
    return stock(references, (), digests).models


def stock(
    references: Sequence[str],
    standby: Sequence[str],
    digests: Digests,
    *,
    may_wish: bool = False,
) -> Stock:
    """As `select`; `standby` may name folders too. With `may_wish`, a model that is no file here
    is a wish, and no error.
    """
    wishes = tuple(one for one in dict.fromkeys(references) if may_wish and is_missing(one))
    # By the file behind the links, but under the name of the link: where downloads are kept, the
    # file's own name is often its digest.
    paths = {path.resolve(): path for one in references if one not in wishes
             for path in (find(one, digests.packages),)}  # fmt: skip
    models = [read(path) for path in paths.values()]
    beside, notes = _beside(standby, frozenset(paths), digests.packages)
    names = Counter(model.id for model in (*models, *beside))

    def named(found: Sequence[ModelFile]) -> tuple[ModelFile, ...]:
        return tuple(one if names[one.id] == 1 else distinct(one, digests) for one in found)

    return Stock(named(models), named(beside), tuple(map(wish, wishes)), notes)


def is_missing(reference: str) -> bool:
    """Whether there is neither a file nor a bundled model of that name, nor can a hub have it."""
    if reference in bundled() or is_hub(reference):
        return False
    return not os.path.exists(_path(reference))


def _path(reference: str) -> Path:
    # Functions of os.path, here and where the path is tested: those of Path raise for users that
    # are unknown, and for names that are too long.
    return Path(os.path.abspath(os.path.expanduser(reference)))


def wish(reference: str) -> ModelId:
    """The name under which the mesh knows the model that a missing reference means."""
    name = Path(reference).stem if reference.endswith(".gguf") else reference
    if not (0 < len(name) <= _LONGEST and name.isprintable()):
        raise ModelError(f"{reference!r} is no name of a model")
    return ModelId(name)


def _beside(
    references: Sequence[str], taken: frozenset[Path], packages: Path
) -> tuple[tuple[ModelFile, ...], tuple[str, ...]]:
    """The models that stand by, and what is wrong with files of their folders. A file that was
    named itself raises ModelError.
    """
    found: list[ModelFile] = []
    seen = set(taken)
    notes: list[str] = []
    for reference in references:
        folder = _path(reference)
        is_folder = not is_hub(reference) and reference not in bundled() and _is_shelf(folder)
        for path in _files(folder) if is_folder else (find(reference, packages),):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                model = read(path)
            except ModelError as error:
                if not is_folder:
                    raise
                notes.append(str(error))
                continue
            if model.architecture != PROJECTOR:
                found.append(model)
    if len(found) > MAX_STANDBY:
        raise ModelError(
            f"{len(found)} models are to stand by; a node keeps {MAX_STANDBY}: name fewer"
        )
    return tuple(found), tuple(notes)


def _is_shelf(folder: Path) -> bool:
    """It holds models, and is not one itself."""
    return os.path.isdir(folder) and not is_package(folder)


def _files(folder: Path) -> tuple[Path, ...]:
    """Of a model in several files, the first."""
    try:
        found = sorted(path for path in folder.glob("*.gguf") if path.is_file())
        return tuple(one for one in found if (split_name(one.name) or ("", 1, 1))[1] == 1)
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error


def distinct(model: ModelFile, digests: Digests) -> ModelFile:
    """The model under a name that no other file has."""
    digest = model.digest or digests.compute(Path(model.path))
    return replace(model, id=ModelId(f"{model.id}@{digest[:8]}"), digest=digest)


class Digests:
    """SHA-256 of models, computed once and remembered by inode, size and time of their files."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lock = threading.Lock()

    @property
    def packages(self) -> Path:
        """Where the packages of the same cache are."""
        return self._cache.parent / "packages"

    async def of(self, path: Path) -> Digest:
        """The digest, computed in a thread: seconds for gigabytes."""
        return await trio.to_thread.run_sync(self.compute, path, abandon_on_cancel=True)

    def compute(self, path: Path) -> Digest:
        """Of a model in several files: the SHA-256 of the text of theirs, one behind the other."""
        found = [self.file(one) for one in files_of(path)]
        if len(found) == 1:
            return found[0]
        return Digest(hashlib.sha256("".join(found).encode()).hexdigest())

    def file(self, path: Path) -> Digest:
        """Of one file."""
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
    """What was read is not kept in memory by the system: a file may be larger than the memory that
    its user has granted it. What is mapped stays.
    """
    total, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(file.fileno(), done, len(chunk), os.POSIX_FADV_DONTNEED)
            done += len(chunk)
    return total.hexdigest()
