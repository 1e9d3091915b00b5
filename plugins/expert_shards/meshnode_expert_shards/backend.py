"""The backend that serves a part of a mixture of experts: whether one fits, and an engine for it.

Theory of operation:

1. `assess` says how many bytes of experts there is room for beside the trunk and the context. The
   node announces that, and so takes part.
2. `open` finds the best ranking of the model's experts that there is, and deals them out to all who
   take part (participants.py). The file of this node's part is built from the package, by ranges
   (building.py), and served by llama.cpp's engine as the whole model, alone. With the routers of
   the whole model it sees which node's part a prompt needs most, and hands it over (serving.py).
3. While it is served, who takes part is followed (following.py). Where this node is to have another
   part, its engine ends, and is opened again at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio
from meshnode_llama_cpp.engine import LlamaEngine, run_engine
from meshnode_llama_cpp.memory import need
from meshnode_llama_cpp.process import threads
from msgspec import structs

from meshnode_expert_shards import prompts, rankings
from meshnode_expert_shards.building import Whole, between, clear, held, study
from meshnode_expert_shards.counter import count, ranking_of
from meshnode_expert_shards.engine import Held, ShardEngine
from meshnode_expert_shards.following import Follower, Known
from meshnode_expert_shards.frames import Count
from meshnode_expert_shards.memory import seat
from meshnode_expert_shards.participants import SETTLE, Division
from meshnode_expert_shards.rankings import BACKEND, RANKING, Ranked
from meshnode_expert_shards.running import run_shard
from p2p_mesh.core.experts.assignment import Impossible
from p2p_mesh.core.experts.speed import token_bytes
from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Fit, Load, Mesh, Refusal

COUNTED, CONTEXT = 2_000, 2_048
"""Tokens with which a model is measured whose ranking nobody has, and of one prompt at most."""
STUDIED, RANKED, BUILT = 0.05, 0.3, 0.8
"""The shares at which the model's headers are read, its ranking and its file are here."""

_ALONE = Refusal(
    "No other node takes part in serving it by expert shards.", "Start others with `--shards`."
)


@dataclass(frozen=True, slots=True)
class _Way:
    """What a division hangs on, beside the nodes: where it is another, all is dealt out anew."""

    model: str
    room: int
    min_mass: float


class ExpertShards:
    """Mixtures of experts, of which this node has a part."""

    name = BACKEND

    def __init__(self, *, settle: float = SETTLE) -> None:
        """`settle`: seconds that a change of nodes lasts before it counts."""
        self._settle = settle
        self._known: dict[_Way, Known] = {}

    def attach(self, mesh: Mesh) -> None:
        """From now on this node shares what it knows of the experts of models."""
        mesh.serve(RANKING, rankings.answer)

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        """Who else takes part, and how much is kept, is found when it is opened."""
        model = load.model
        if model.shard is not None:
            return Refusal(f"{model.id} is an expert shard itself.")
        if not model.experts:
            return Refusal(f"{model.id} is no mixture of experts.")
        return seat(load, _available(load, resources))

    async def expect(self, load: Load, resources: Resources, mesh: Mesh) -> Fit | Refusal:
        """What this node's part would be, of those who take part now and this node."""
        found = self.assess(load, resources)
        if isinstance(found, Refusal):
            return found
        if not any(held.shards for _, about in mesh.peers() for held in about.held):
            return _ALONE  # before all of the file is read for its hashes
        whole = await study(await mesh.package(load.model))
        follower = self._follower(whole, load, mesh, found)
        if (ranked := await follower.find()) is None:
            return Refusal("There is no ranking of its experts yet.", _analyze(load.model))
        participants = follower.present()
        if len(participants) == 1:
            return _ALONE
        division = await follower.divide(participants, ranked)
        if isinstance(division, Impossible):
            return Refusal(f"{division.why}.")
        is_here = await trio.Path(load.model.path).is_file()
        speed = _speed(load.model, resources)
        found = replace(found, tokens_per_second=speed)
        return _expected(mesh, found, whole, division, is_here=is_here)

    @asynccontextmanager
    async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[ShardEngine]:
        """Raises Unavailable while too few nodes take part, or nobody knows which experts the
        model uses; ModelError where it is at fault.
        """
        # What was leased for it, where somebody did.
        available = load.memory_limit or mesh.resources().memory_free
        found = seat(load, available)
        if isinstance(found, Refusal):
            raise ModelError(f"{found.reason} {found.advice}".strip())
        if not mesh.peers() and await trio.Path(load.model.path).is_dir():
            raise Unavailable("there is no other node yet, and parts of it may be missing here")
        package = await mesh.package(load.model)
        whole = await study(package, partial(between, load.progress, 0.0, STUDIED))
        follower = self._follower(whole, load, mesh, found)
        way = _Way(whole.digest, found.room, load.min_mass)
        if way not in self._known:
            self._known[way] = await follower.begin(await _ranked(follower, whole, load))
        known = self._known[way]
        part = await follower.hold(known.division, partial(between, load.progress, RANKED, BUILT))
        shard = await _file(part, load)
        if need(replace(load, model=shard), found.context, found.slots) > available:
            raise ModelError(f"{part.note}: that takes more memory than this node gives")
        renewed = partial(self._known.__setitem__, way)
        async with (
            _engine(load, shard, found, part) as engine,
            _following(follower, engine, known, renewed),
        ):
            yield engine

    def _follower(self, whole: Whole, load: Load, mesh: Mesh, found: Fit) -> Follower:
        return Follower(whole, mesh, room=found.room, min_mass=load.min_mass, settle=self._settle)


@asynccontextmanager
async def _engine(
    load: Load, shard: ModelFile, found: Fit, part: Held
) -> AsyncIterator[ShardEngine]:
    load = replace(load, model=shard, progress=partial(between, load.progress, BUILT, 1.0))
    with ExitStack() as stack:
        for one in (part.built, part.routers):
            if one is not None:
                stack.enter_context(held(one.path))
        await trio.to_thread.run_sync(clear, part.whole)
        async with _inner(load, found, part) as inner:
            yield ShardEngine(inner, part)


def _inner(load: Load, found: Fit, part: Held) -> AbstractAsyncContextManager[LlamaEngine]:
    if part.routers is None:
        return run_engine(load, found)
    return run_shard(load, found, part.routers.path, part.parts)


@asynccontextmanager
async def _following(
    follower: Follower, engine: ShardEngine, known: Known, renewed: Callable[[Known], None]
) -> AsyncIterator[None]:
    with bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.follow, engine, known, renewed)
            yield
            nursery.cancel_scope.cancel()


def _available(load: Load, resources: Resources) -> int:
    free = resources.memory_free
    return free if load.memory_limit is None else min(free, load.memory_limit)


async def _file(part: Held, load: Load) -> ModelFile:
    """What llama.cpp loads."""
    if part.built is not None:
        return structs.replace(
            load.model, path=str(part.built.path), size_bytes=part.built.size_bytes
        )
    if not await trio.Path(load.model.path).is_dir():
        return load.model
    path = await part.whole.package.whole(partial(between, load.progress, RANKED, BUILT))
    return structs.replace(load.model, path=str(path))


def _analyze(model: ModelFile) -> str:
    return f"`meshnode experts analyze {model.path}` makes one, and nodes share it."


async def _ranked(follower: Follower, whole: Whole, load: Load) -> Ranked:
    """The ranking that this node or another has; else one that is measured now, in short."""
    if (ranked := await follower.find()) is not None:
        return ranked
    if await trio.Path(load.model.path).is_dir():
        raise Unavailable(
            f"nobody knows yet which experts {load.model.id} uses: run `meshnode experts analyze` "
            f"where its file is"
        )
    command = Count(
        name=load.model.id,
        path=load.model.path,
        family=load.model.architecture,
        experts=whole.layout.experts,
        prompts=await trio.to_thread.run_sync(prompts.bundled),
        tokens=COUNTED,
        context=min(CONTEXT, load.model.context_length or CONTEXT),
        threads=load.threads or threads(),
        memory_limit=load.memory_limit,
    )
    counted = await count(
        command, progress=lambda _, share: between(load.progress, STUDIED, RANKED, share)
    )
    measured = Ranked.of(ranking_of(counted, whole.digest, whole.layout))
    await trio.to_thread.run_sync(rankings.keep, measured)
    return await follower.find() or measured  # another may have measured it too


def _speed(model: ModelFile, resources: Resources) -> float | None:
    """Tokens a second: one goes through as many experts as ever."""
    return resources.bandwidth / token_bytes(model) if resources.bandwidth else None


def _expected(
    mesh: Mesh, found: Fit, whole: Whole, division: Division, *, is_here: bool
) -> Fit | Refusal:
    me = mesh.me()
    if (part := division.part(me)) is None:
        return Refusal(
            f"It has room for {found.room / 1e9:.1f} GB of experts, too few beside the others."
        )
    names = {peer: one.name for peer, one in mesh.peers()} | {me: mesh.name()}
    keep = division.assignment.keep
    size = whole.trunk_bytes + keep * whole.layout.bytes_per_expert
    nodes = [
        {"node": one.peer, "name": names.get(one.peer, ""), "mass": own.mass, "size_bytes": size}
        for one, own in zip(division.participants, division.assignment.parts, strict=True)
    ]
    details: dict[str, Any] = {
        "ranking": True,
        "experts": whole.layout.experts,
        "experts_kept": keep,
        "whole_here": is_here,
        "nodes": nodes,
    }
    return replace(found, mass=part.mass, details=details)
