"""What the owner of a node has it do: load, unload and stop, by a command on this machine
(`meshnode load`), or by an order from another (specs/control/README.md).

Nothing here waits until a model is ready or an answer has ended; the status tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import trio

from p2p_mesh.core.control import (
    MAX_ERROR,
    MAX_MODELS,
    Command,
    ListModels,
    LoadModel,
    ModelState,
    Report,
    StopNode,
    UnloadModel,
    owner_text,
)
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.records import Held
from p2p_mesh.errors import LocalError, UnknownModel
from p2p_mesh.journal import Journal
from p2p_mesh.node.membership import STARTING
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.state.owner import owner_key

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network

BEGUN = 0.2
"""Seconds in which an unloading either failed or has begun; it goes on by itself."""

STOP_DELAY = 0.5
"""Seconds between an order to stop and the end: the report is sent meanwhile."""


class Models(Protocol):
    """The models of a node, as models.py has them."""

    @property
    def hosted(self) -> Mapping[str, Hosted]: ...

    def held(self) -> tuple[Held, ...]: ...

    def leaving(self) -> Iterable[Hosted]:
        """Those that take no more requests, and whose last answers are waited for."""
        ...

    async def load(self, reference: str) -> Hosted: ...

    async def unload(self, reference: str) -> None: ...


class Control:
    """Commands to one node, and the orders that it gives to others."""

    def __init__(self, models: Models, directory: Path, journal: Journal) -> None:
        self.network: Network | None = None
        self._models = models
        self._directory = directory
        self._journal = journal
        self._told_to_stop = trio.Event()

    async def wait_stopped(self) -> None:
        """Returns when an owner had the node stop."""
        await self._told_to_stop.wait()
        await trio.sleep(STOP_DELAY)

    # What the management port asks

    async def load(self, reference: str) -> str:
        """Begins to load a model; its id. Raises ModelError and LocalError."""
        return (await self._models.load(reference)).id

    async def unload(self, reference: str) -> str:
        """Begins to unload a model; its id. Raises LocalError."""
        model = self._meant(reference)
        with trio.move_on_after(BEGUN):
            await self._models.unload(reference)
        return model

    def _meant(self, reference: str) -> str:
        held = self._models.held()
        named = (one.id for one in held if (one.digest or "").startswith(reference))
        return reference if reference in self._models.hosted else next(named, reference)

    async def order(self, peer: str, command: Command) -> dict[str, Any]:
        """Has a node do what its owner orders, whose key is on this machine; its report."""
        if self.network is None:
            raise LocalError(STARTING)
        key = await trio.to_thread.run_sync(owner_key, self._directory)
        report = await self.network.order(PeerId(peer), command, key)
        return {"models": [msgspec.structs.asdict(one) for one in report.models]}

    # What an owner orders

    async def obey(self, command: Command, owner: bytes, peer: PeerId) -> Report:
        """Carries out the command of an owner that was accepted. Raises LocalError."""
        self._note(command, owner, peer)
        match command:
            case LoadModel():
                await self._models.load(self._own(command.digest))
            case UnloadModel():
                await self.unload(self._own(command.digest))
            case StopNode():
                self._told_to_stop.set()
        return Report(models=tuple(self._states())[:MAX_MODELS])

    def _own(self, digest: Digest) -> str:
        """The digest, if it is that of a file which this node has in mind."""
        if all(one.digest != digest for one in self._models.held()):
            raise UnknownModel(f"this node has no model with the digest {digest}")
        return digest

    def _note(self, command: Command, owner: bytes, peer: PeerId) -> None:
        if isinstance(command, ListModels):
            return  # asked again and again while a model loads
        told = msgspec.to_builtins(command)
        what = " ".join(told.values())
        self._journal.info(
            "ordered", f"The owner {owner_text(owner)} orders: {what}",
            owner=owner_text(owner), peer=peer, command=what,
        )  # fmt: skip

    def _states(self) -> Iterator[ModelState]:
        hosted = self._models.hosted
        leaving = {one.id: one for one in self._models.leaving()}
        yield from (_state(one, one.state) for one in hosted.values())
        yield from (_state(one, "unloading") for one in leaving.values())
        for held in self._models.held():
            if held.id not in hosted and held.id not in leaving:
                yield ModelState(id=held.id, digest=held.digest, state="held")


def _state(hosted: Hosted, state: str) -> ModelState:
    return ModelState(
        id=hosted.id,
        digest=hosted.digest,
        state=state,
        progress=hosted.progress,
        active=hosted.active,
        queued=hosted.queued,
        error=hosted.error[:MAX_ERROR],
    )
