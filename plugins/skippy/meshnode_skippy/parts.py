"""What a stage is made of: from a package to the files that its worker opens.

Parts are fetched where they are missing, and composed into the GGUF file of the stage. That is kept
in the cache, named after the package, the layers and the recipe, and used again.

Whoever waits for a stage gives it up where its share rises no more. So each part of the work has a
range of the share; and one that cannot tell how far it is is taken for a small step now and then
(`beating`), which has an end.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import trio

from meshnode_skippy import lease
from meshnode_skippy.composing import compose
from meshnode_skippy.wiring import Wiring, wiring
from p2p_mesh.core import families
from p2p_mesh.core.costs import StageModel, stage_model
from p2p_mesh.core.families.recipe import Recipe
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.package import artifacts_for
from p2p_mesh.core.records import KvType
from p2p_mesh.core.sizing import sliding
from p2p_mesh.errors import ModelError
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Package, Wire
from p2p_mesh.settings import cache_dir

TABLE = "token_embd.weight"

Progress = Callable[[float], None]

OPENED, QUEUED, FETCHED, CHECKED, ADMITTED = 0.05, 0.1, 0.7, 0.75, 0.8
"""The shares at which a package is open, its parts begin to come, all are here, they are checked,
and the file begins to be written.
"""

BEAT = lease.STALLED / 4
"""Seconds from one small step to the next,"""
BEATS = 40
"""and how many there are before a wait looks like what it may be: one without an end."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the worker of a stage opens."""

    path: str
    metadata: str
    embeddings: str | None
    wiring: Wiring
    window: int
    """Tokens that sliding layers see; 0: none slide."""


async def study(
    package: Package,
    *,
    context: int,
    slots: int,
    kv_type: KvType = "f16",
    wire: Wire = "f32",
    model: str = "",
) -> StageModel:
    """The model as a plan sees it. Raises ModelError where it cannot be cut at all."""

    def found() -> StageModel:
        header = header_of(package.metadata)
        return stage_model(
            package.manifest, header, families.study(header), sha256=package.ref.manifest,
            context=context, slots=slots, kv_type=kv_type, wire=wire, model=model,
        )  # fmt: skip

    return await trio.to_thread.run_sync(found)


async def gather(package: Package, start: int, end: int, progress: Progress) -> Parts:
    """The files of a stage of these layers. Raises ModelError for layers that can be no stage, and
    what fetching them raises.
    """
    header = await trio.to_thread.run_sync(header_of, package.metadata)
    recipe = families.study(header).recipe(start, end)
    progress = _rising(progress)
    wanted = _artifacts(package, recipe)
    sources = await _fetch(package, wanted, progress)
    path = stage_file(package.ref.manifest, recipe)
    room = package.room(sum(package.manifest.artifact(one).artifact_bytes for one in wanted))
    await _compose(recipe, package.metadata, sources, target=path, room=room, progress=progress)
    has_table = recipe.is_first and recipe.entry == "rows"
    table = await trio.to_thread.run_sync(_holding, TABLE, sources) if has_table else None
    return Parts(str(path), str(package.metadata), table, wiring(recipe), window=sliding(header)[0])


def _rising(progress: Progress) -> Progress:
    """Without what is less than was told: a step from before a fetch had begun to tell."""
    most = 0.0

    def tell(share: float) -> None:
        nonlocal most
        if share > most:
            most = share
            progress(share)

    return tell


@asynccontextmanager
async def beating(progress: Progress, low: float, high: float) -> AsyncIterator[None]:
    """Around what cannot tell how far it is: it is taken for small steps from `low` towards `high`,
    as long as there are any.
    """
    with bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_beat, progress, low, high)
            yield
            nursery.cancel_scope.cancel()


async def _beat(progress: Progress, low: float, high: float) -> None:
    for beat in range(BEATS):
        progress(low + (high - low) * beat / BEATS)
        await trio.sleep(BEAT)


async def _fetch(package: Package, wanted: Sequence[str], progress: Progress) -> Sequence[Path]:
    """Another fetch of the package may have to be waited for; and what has come is checked."""
    async with beating(progress, OPENED, QUEUED), trio.open_nursery() as nursery:
        is_here = trio.Event()

        def came(share: float) -> None:
            progress(QUEUED + (FETCHED - QUEUED) * share)
            if share >= 1:
                is_here.set()

        async def check() -> None:
            await is_here.wait()
            await _beat(progress, FETCHED, CHECKED)

        nursery.start_soon(check)
        sources = await package.fetch(wanted, came)
        nursery.cancel_scope.cancel()
    return sources


def stage_file(manifest: str, recipe: Recipe) -> Path:
    """Where the file of a stage is kept. The same layers by other rules are another file."""
    rules = hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest()[:8]
    return cache_dir() / "stages" / manifest / f"{recipe.start}-{recipe.end}-{rules}.gguf"


def header_of(path: Path) -> Header:
    """Blocks; raises ModelError."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return read_header(data, len(data))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _artifacts(package: Package, recipe: Recipe) -> tuple[str, ...]:
    wanted = artifacts_for(package.manifest, recipe)
    table = package.manifest.embeddings.path
    # Its rows are looked up there, also where its own file has none.
    return (*wanted, table) if recipe.is_first and table not in wanted else wanted


_composing: WeakValueDictionary[Path, trio.Lock] = WeakValueDictionary()


async def _compose(
    recipe: Recipe,
    metadata: Path,
    sources: Sequence[Path],
    *,
    target: Path,
    room: AbstractAsyncContextManager[None],
    progress: Progress,
) -> None:
    lock = _composing.setdefault(target, trio.Lock())

    def written(share: float) -> None:
        """Called in the thread, which ends here when nobody wants the file any longer."""
        trio.from_thread.check_cancelled()
        trio.from_thread.run_sync(progress, ADMITTED + (1 - ADMITTED) * share)

    async with beating(progress, CHECKED, ADMITTED), lock:
        if await trio.to_thread.run_sync(target.exists):
            return
        async with room:
            await trio.to_thread.run_sync(
                partial(_compose_once, recipe, metadata, sources, target, written)
            )


def _compose_once(
    recipe: Recipe, metadata: Path, sources: Sequence[Path], target: Path, progress: Progress
) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        compose(recipe, metadata=metadata, sources=sources, target=target, progress=progress)
    except OSError as error:
        raise ModelError(f"the stage cannot be written to {target}: {error}") from error


def _holding(tensor: str, sources: Sequence[Path]) -> str:
    """The file that has it."""
    if len(sources) == 1:
        return str(sources[0])
    for path in sources:
        if any(one.name == tensor for one in header_of(path).tensors):
            return str(path)
    raise ModelError(f"no part of the package has the tensor {tensor}")
