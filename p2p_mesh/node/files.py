"""The model files that a node knows on its disk: which one a reference means, how it is loaded, and
its digest, which is learned beside. Whether a file is served is for models.py to say.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import trio

from p2p_mesh.core.names import Digest, ModelId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import LocalError
from p2p_mesh.journal import Journal
from p2p_mesh.node import loads
from p2p_mesh.serve import store
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.store import Digests
from p2p_mesh.settings import Settings

MAX_FILES = 200
"""That a node keeps in mind."""

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


class Files:
    """The model files of one node, by id, each as it is to be loaded."""

    def __init__(self, settings: Settings, digests: Digests, journal: Journal) -> None:
        self._settings = settings
        self._digests = digests
        self._journal = journal
        self._loads: dict[ModelId, Load] = {}

    def __iter__(self) -> Iterator[Load]:
        return iter(tuple(self._loads.values()))

    def add(self, load: Load) -> None:
        """Keeps a file in mind. Raises LocalError where there are too many."""
        if load.model.id not in self._loads and len(self._loads) >= MAX_FILES:
            raise LocalError(f"this node keeps {MAX_FILES} model files in mind, and no more")
        self._loads[load.model.id] = load

    def get(self, reference: str) -> Load | None:
        """The file that is meant by its model's id, or by the first 8 digits or more of its
        digest. Raises LocalError where these are the digits of several.
        """
        if (load := self._loads.get(ModelId(reference))) is not None:
            return load
        if not _DIGEST.fullmatch(reference):
            return None
        found = [one for one in self if (one.model.digest or "").startswith(reference)]
        if len({one.model.digest for one in found}) > 1:
            names = ", ".join(one.model.id for one in found)
            raise LocalError(f"{reference} begins the digests of {names}: give more digits")
        return found[0] if found else None

    async def find(self, reference: str, taken: Collection[str]) -> Load:
        """The file that is meant by `get`, by a path, or by a bundled model's name. A new one has
        a name that is not `taken`. Raises ModelError where there is none.
        """
        if (load := self.get(reference)) is not None:
            return load
        return await trio.to_thread.run_sync(self._read, reference, frozenset(taken))

    def _read(self, reference: str, taken: Collection[str]) -> Load:
        model = store.read(store.find(reference, self._digests.packages))
        for load in self:
            if Path(load.model.path).resolve() == Path(model.path).resolve():
                return load
        if model.id in self._loads or model.id in taken:
            model = store.distinct(model, self._digests)
        return loads.plain(model, self._settings)

    async def learn(self, model: ModelId) -> Digest | None:
        """The digest of a file's bytes; None, and a warning, where they cannot be read."""
        load = self._loads[model]
        if load.model.digest is not None:
            return load.model.digest
        digest = await self._digest(load.model)
        if digest is not None:
            known = msgspec.structs.replace(load.model, digest=digest)
            self._loads[model] = dataclasses.replace(load, model=known)
        return digest

    async def _digest(self, model: ModelFile) -> Digest | None:
        try:
            return await self._digests.of(Path(model.path))
        except OSError as error:
            self._journal.warning(
                "digest_failed", f"{model.path} cannot be read: {error.strerror}",
                model=model.id, reason=str(error),
            )  # fmt: skip
            return None
