"""What a stage is made of: from a package to the files that its worker opens.

Parts are fetched where they are missing, and composed into the GGUF file of the stage. That is kept
in the cache, named after the package, the layers and the recipe, and used again.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import trio

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
from p2p_mesh.serve.backend import Package, Wire
from p2p_mesh.settings import cache_dir

TABLE = "token_embd.weight"


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


async def gather(
    package: Package, start: int, end: int, progress: Callable[[float], None]
) -> Parts:
    """The files of a stage of these layers. Raises ModelError for layers that can be no stage, and
    what fetching them raises.
    """
    header = await trio.to_thread.run_sync(header_of, package.metadata)
    recipe = families.study(header).recipe(start, end)
    wanted = _artifacts(package, recipe)
    sources = await package.fetch(wanted, progress)
    path = stage_file(package.ref.manifest, recipe)
    await _compose(recipe, package.metadata, sources, path)
    has_table = recipe.is_first and recipe.entry == "rows"
    table = await trio.to_thread.run_sync(_holding, TABLE, sources) if has_table else None
    return Parts(str(path), str(package.metadata), table, wiring(recipe), window=sliding(header)[0])


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


async def _compose(recipe: Recipe, metadata: Path, sources: Sequence[Path], target: Path) -> None:
    lock = _composing.setdefault(target, trio.Lock())
    async with lock:
        await trio.to_thread.run_sync(partial(_compose_once, recipe, metadata, sources, target))


def _compose_once(recipe: Recipe, metadata: Path, sources: Sequence[Path], target: Path) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        compose(recipe, metadata=metadata, sources=sources, target=target)
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
