"""`meshnode experts plan`: what each of several nodes would have of a model's experts, and how much
of the routing that keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from meshnode_expert_shards.commands.models import Mixture, opened
from meshnode_expert_shards.composing import size_of
from meshnode_expert_shards.memory import seat
from p2p_mesh.cli import output
from p2p_mesh.cli.client import json_option
from p2p_mesh.core.experts.assignment import MIN_MASS, Assignment, Impossible, Part, assign
from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.core.experts.shard import ShardRecipe, obstacle, shard_recipe
from p2p_mesh.errors import LocalError, ModelError, SettingsError
from p2p_mesh.serve.backend import Load, Refusal

F = TypeVar("F", bound=Callable[..., Any])


def share_options(function: F) -> F:
    """How experts are shared out: the same for a plan, and for the files."""
    for option in reversed((
        click.option("--nodes", required=True, type=click.IntRange(1, 1024),
                     help="Nodes that share the experts."),
        click.option("--keep", metavar="K", type=click.IntRange(1, 4096),
                     help="Experts of each layer on each node.  [default: the fewest that keep "
                          "--min-mass]"),
        click.option("--memory", metavar="GB", multiple=True,
                     type=click.FloatRange(0, 1e6, min_open=True),
                     help="Memory of a node: as many experts as it has room for. Repeatable; the "
                          "smallest counts."),
        click.option("--min-mass", type=click.FloatRange(0, 1), default=MIN_MASS, show_default=True,
                     help="The least share of the routing that a node must keep."),
        click.option("--overlap", type=click.IntRange(1, 1024),
                     help="Nodes on which each expert is at least.  [default: 2 with three nodes "
                          "and more, else 1]"),
    )):  # fmt: skip
        function = option(function)
    return function


@click.command("plan")
@click.argument("reference", metavar="MODEL")
@share_options
@json_option
def command(reference: str, as_json: bool, **shares: Any) -> int:
    """Show what each of several nodes would have of a model's experts: how many of each layer, the
    size of its file, and the routing mass that it keeps. It ends with code 1 where that is less
    than --min-mass. Nothing is written.

    MODEL is a GGUF file, the first of a split one, or the folder of a package, that `meshnode
    experts analyze` has measured.

    \b
    Examples:
      meshnode experts plan qwen3-30b-a3b-q4_k_m.gguf --nodes 3
      meshnode experts plan qwen3-30b-a3b-q4_k_m.gguf --nodes 2 --memory 16
      meshnode experts plan qwen3-30b-a3b-q4_k_m.gguf --nodes 4 --keep 64 --min-mass 0.8 --json
    """
    mixture = opened(reference)
    found = shared_out(mixture, **shares)
    if isinstance(found, Impossible):
        return _refuse(mixture, found, as_json=as_json)
    if as_json:
        output.as_json(_described(mixture, found))
    else:
        _tell(mixture, found)
    return 0


@dataclass(frozen=True, slots=True)
class Shared:
    """Experts as they would be shared out."""

    ranking: Ranking
    assignment: Assignment
    recipes: tuple[ShardRecipe, ...]
    """Of the file of each node,"""
    sizes: tuple[int, ...]
    """and its bytes."""

    @property
    def by_node(self) -> Iterator[tuple[int, Part, int]]:
        """Numbers of nodes, what they have, and the size of that."""
        parts = self.assignment.parts
        return zip(range(1, len(parts) + 1), parts, self.sizes, strict=True)

    @property
    def core_mass(self) -> float:
        """The routing mass of the experts that all nodes have."""
        by_layer = zip(*(part.experts for part in self.assignment.parts), strict=True)
        core = [sorted(set[int].intersection(*map(set, layer))) for layer in by_layer]
        return self.ranking.mass(core)


def shared_out(
    mixture: Mixture,
    *,
    nodes: int,
    keep: int | None,
    memory: Sequence[float],
    min_mass: float,
    overlap: int | None,
) -> Shared | Impossible:
    """Raises LocalError where the model was not measured, ModelError where no shards are made of
    it.
    """
    if keep is not None and memory:
        raise SettingsError("--keep says how many experts a node has, and so does --memory")
    if len(memory) not in (0, 1, nodes):
        raise SettingsError(f"--memory is given {len(memory)} times, for {nodes} nodes")
    if why := obstacle(mixture.header, keep):
        raise ModelError(why)
    ranking = mixture.ranking()
    found = assign(
        ranking, nodes, layout=mixture.layout, keep=keep, min_mass=min_mass, overlap=overlap,
        room=[_room(mixture, one) for one in memory] or None,
    )  # fmt: skip
    if isinstance(found, Impossible):
        return found
    recipes = tuple(_recipe(mixture, found, number) for number in range(nodes))
    sources = mixture.sources
    sizes = tuple(size_of(one, keys=sources[0], sources=sources) for one in recipes)
    return Shared(ranking, found, recipes, sizes)


def percent(mass: float) -> str:
    """Never shown as more than it is: 0.8499 is less than 85 %."""
    return f"{math.floor(mass * 1000) / 10:.1f}%"


def _room(mixture: Mixture, memory: float) -> int:
    """Bytes for experts on a node, as it would reckon itself. Raises LocalError where it has no
    room for the rest of the model.
    """
    found = seat(Load(mixture.model), int(memory * 1e9))
    if isinstance(found, Refusal):
        raise LocalError(f"{found.reason} {found.advice}".strip())
    return found.room


def _recipe(mixture: Mixture, found: Assignment, number: int) -> ShardRecipe:
    part = found.parts[number]
    return shard_recipe(
        mixture.header, mixture.layout, part.experts,
        model=mixture.digest, mass=part.mass, part=number, parts=len(found.parts),
    )  # fmt: skip


def _refuse(mixture: Mixture, found: Impossible, *, as_json: bool) -> int:
    if not as_json:
        raise LocalError(found.why)
    output.as_json({"model": mixture.model.id, "fits": False, "reason": found.why,
                    "mass": found.mass, "keep": found.keep})  # fmt: skip
    return 1


def _described(mixture: Mixture, found: Shared) -> dict[str, Any]:
    assignment, each = found.assignment, mixture.layout.bytes_per_expert
    return {
        "model": mixture.model.id,
        "digest": mixture.digest,
        "fits": True,
        "size_bytes": mixture.model.size_bytes,
        "experts": mixture.layout.experts,
        "experts_used": mixture.layout.used,
        "tokens": found.ranking.tokens,
        "keep": assignment.keep,
        "overlap": assignment.overlap,
        "mass": assignment.mass,
        "core": {"experts": assignment.core, "size_bytes": assignment.core * each,
                 "mass": found.core_mass},
        "nodes": [
            {"node": number, "experts": assignment.keep, "size_bytes": size, "mass": part.mass,
             "least_mass": part.least}
            for number, part, size in found.by_node
        ],
    }  # fmt: skip


def _tell(mixture: Mixture, found: Shared) -> None:
    assignment, total = found.assignment, mixture.layout.experts
    output.line(
        f"{mixture.model.id} ({mixture.model.size_bytes / 1e9:.2f} GB) on {len(found.sizes)} "
        f"nodes: each has {assignment.keep} of {total} experts of every layer"
    )
    output.line(
        f"All of them have a core of {assignment.core}, "
        f"{assignment.core * mixture.layout.bytes_per_expert / 1e9:.2f} GB, with "
        f"{percent(found.core_mass)} of the routing"
    )
    rows = [
        [str(number), f"{assignment.keep} of {total}", f"{size / 1e9:.2f} GB", percent(part.mass),
         percent(part.least)]
        for number, part, size in found.by_node
    ]  # fmt: skip
    output.table(("NODE", "EXPERTS", "FILE", "ROUTING MASS", "LEAST LAYER"), rows)
