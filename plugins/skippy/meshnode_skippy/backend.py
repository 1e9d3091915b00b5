"""The backend that runs a model in stages: whether it could be cut, and an engine over several
nodes. It also holds stages of other nodes' models, as soon as it is attached to the mesh.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio
from meshnode_llama_cpp.backend import fit

from meshnode_skippy import lease, parts
from meshnode_skippy.coordinator import Ring, run_ring, sites
from meshnode_skippy.holder import Holder
from meshnode_skippy.process import WORKER
from p2p_mesh.core import families
from p2p_mesh.core.costs import StageModel, rooms
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply, Resources
from p2p_mesh.core.sites import BACKEND, Site
from p2p_mesh.core.stages import Impossible, Plan, layers, plan
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.backend import Description, Fit, Load, Mesh, Package, Refusal

_LONGEST_CUTS = 64


class Skippy:
    """Models in stages, each a range of layers on a node of its own."""

    name = "skippy"

    def __init__(self, *, worker: str = WORKER) -> None:
        self._worker = worker
        self._holder: Holder | None = None

    def attach(self, mesh: Mesh) -> None:
        """From now on this node holds stages of others' models."""
        self._holder = holder = Holder(mesh, worker=self._worker)
        mesh.serve(lease.STAGE, holder.attend)
        mesh.serve(lease.ACTIVATIONS, holder.meet)

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        """Where its memory is, no single node knows: that is found when it is opened."""
        if load.model.architecture not in families.CERTIFIED:
            return Refusal(f"models of {load.model.architecture} cannot be cut into stages")
        if load.projector is not None:
            return Refusal(f"{load.model.id} cannot be cut into stages with a projector")
        anywhere = fit(load, None)
        if isinstance(anywhere, Refusal):
            return anywhere
        return Fit(load.context or 0, load.slots or 0, memory_bytes=0, choice="stages")

    async def expect(self, load: Load, resources: Resources, mesh: Mesh) -> Fit | Refusal:
        """The plan as it would be now. Alone, nothing is planned: that may read the whole file."""
        if not any(BACKEND in about.backends for _, about in mesh.peers()):
            return Refusal("no other node is known that takes stages.", "Start some in this mesh.")
        found = await find_plan(load, mesh, await mesh.package(load.model), set())
        speed = found.tokens_per_second
        return Fit(found.context, found.slots, 0, tokens_per_second=speed, choice="stages")

    @asynccontextmanager
    async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[SplitEngine]:
        """Raises Unavailable, in the planner's words, while nodes are missing."""
        if self._holder is None:
            self.attach(mesh)
        assert self._holder is not None
        package = await mesh.package(load.model)

        async def planner(shunned: set[PeerId]) -> Plan:
            return await find_plan(load, mesh, package, shunned)

        async with run_ring(self._holder, mesh, load, package.ref, planner) as ring:
            load.progress(1.0)
            yield SplitEngine(ring, load)


class SplitEngine:
    """An engine of several nodes. The first stage's worker has the tokenizer and the answers."""

    def __init__(self, ring: Ring, load: Load) -> None:
        self._ring = ring
        self._process = ring.process
        self._load = load

    def describe(self) -> Description:
        about = self._process.describe()
        first, *others = [seat.terms.loaded.numerics for seat in self._ring.seats]
        alike = "" if all(one == first for one in others) else f" {_short(' '.join(others))}"
        return Description(
            capabilities=about.capabilities,
            context=about.context,
            slots=about.slots,
            numerics=f"{about.numerics} stages {self._cuts()} {self._load.wire}{alike}",
            device=about.device,
            pid=about.pid,
            notes=(*about.notes, self._who()),
        )

    def generate(
        self, request: InferenceRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        return self._process.generate(request)

    async def query(self, query: Query) -> Reply:
        return await self._process.query(query)

    async def wait_ended(self) -> str:
        return await self._process.wait_ended()

    async def close(self) -> None:
        await self._process.close()

    def _cuts(self) -> str:
        places = self._ring.plan.places
        return _short("-".join(map(str, (0, *(place.end for place in places)))))

    def _who(self) -> str:
        return "in stages: " + ", ".join(
            f"{layers(place.start, place.end)} {'here' if place.is_here else f'on {place.name}'}"
            for place in self._ring.plan.places
        )


def _short(text: str) -> str:
    """A text, or what stands for one that is long."""
    if len(text) <= _LONGEST_CUTS:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def find_plan(load: Load, mesh: Mesh, package: Package, without: set[PeerId]) -> Plan:
    """The plan with the largest default that some nodes can hold. Raises Unavailable, or ModelError
    where no nodes could.
    """
    trained = load.model.context_length
    found: Plan | Impossible | None = None
    for context, slots in rooms(load.context or None, load.slots or None, trained):
        model = await parts.study(
            package, context=context, slots=slots, kv_type=load.kv_type or "f16", wire=load.wire,
            model=load.model.id,
        )  # fmt: skip
        nodes = sites(mesh, model, without)
        found = await trio.to_thread.run_sync(_planned, model, nodes, load)
        if isinstance(found, Plan) or not found.missing:
            break
    if found is None:
        raise ModelError(f"{load.model.id} has no context")
    if isinstance(found, Impossible):
        raise ModelError(str(found)) if found.is_final else Unavailable(str(found))
    if not found.places[0].is_here:
        raise Unavailable(f"another node has to coordinate: {'; '.join(found.words())}")
    return found


def _planned(model: StageModel, nodes: Sequence[Site], load: Load) -> Plan | Impossible:
    return plan(
        model, nodes, split=True, topology=load.topology, most_round_trip=load.most_round_trip
    )
