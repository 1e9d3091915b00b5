"""`meshnode experts analyze`: which experts a model uses, measured on prompts and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
import trio
from meshnode_llama_cpp.process import threads as usual_threads

from meshnode_expert_shards import prompts as prompt_files
from meshnode_expert_shards.commands.models import Mixture, opened
from meshnode_expert_shards.counter import count, ranking_of
from meshnode_expert_shards.frames import Count
from meshnode_expert_shards.rankings import Ranked, keep, place
from p2p_mesh.cli import output
from p2p_mesh.cli.client import json_option
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking, encode_ranking, merge
from p2p_mesh.errors import SettingsError
from p2p_mesh.serve import hardware

TOKENS = 4_000
"""Read and written, unless told otherwise."""
CONTEXT = 4_096
"""Tokens of one prompt with its continuation, at most."""
SHARES = (0.5, 0.8, 0.95)
"""Of the routing: how many experts take so much is shown."""

_BAR = 30


@click.command("analyze")
@click.argument("reference", metavar="MODEL")
@click.option("--prompts", metavar="FILE", type=click.Path(dir_okay=False),
              help="Prompts to measure with, one on each line: text, or (*.jsonl) JSON with "
                   "`prompt` or `messages`.  [default: 40 of many kinds]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(16, 10_000_000), default=TOKENS, show_default=True,
              help="Tokens that the model reads and writes in all.")  # fmt: skip
@click.option("--ctx", type=click.IntRange(16, 2**20), default=CONTEXT, show_default=True,
              help="Of them, of one prompt and its continuation at most.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads that compute.")
@click.option("--force", is_flag=True, help="Measure anew what was measured before.")
@click.option("--add", is_flag=True, help="Measure more, and add it to what was measured before.")
@click.option("--output", "copy", metavar="FILE", type=click.Path(dir_okay=False),
              help="Write the ranking to this file too.")  # fmt: skip
@json_option
def command(
    reference: str, prompts: str | None, force: bool, add: bool, copy: str | None, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Measure which experts of a model are used, and how much: it reads prompts and goes on writing
    them, and for each layer it is counted which experts its router chooses, with what weight. The
    ranking is kept in the cache, and shared with the nodes of a mesh.

    MODEL is a GGUF file, the first of a split one, or the folder of a package. One that is larger
    than memory works too; it is read from the disk again and again, which takes long.

    \b
    Examples:
      meshnode experts analyze qwen3-30b-a3b-q4_k_m.gguf
      meshnode experts analyze qwen3-30b-a3b-q4_k_m.gguf --prompts ours.jsonl --add
      meshnode experts analyze olmoe.gguf --tokens 20000 --force --json | jq .layers[0].top
    """
    if force and add:
        raise SettingsError("--force forgets what was measured before, and --add adds to it")
    target = Path(copy).expanduser() if copy is not None else None
    if target is not None and not target.absolute().parent.is_dir():
        raise SettingsError(f"{target} cannot be written: its folder is not there")
    wanted = prompt_files.read(Path(prompts).expanduser()) if prompts else prompt_files.bundled()
    mixture = opened(reference)
    known = None if force else mixture.known()
    if known is not None and not add:
        ranking = known
        output.note(f"{mixture.model.id} was measured before; --force measures it anew, --add more")
    else:
        found = _measured(mixture, wanted, **asked)
        ranking = merge(known, found) if known is not None else found
        keep(Ranked.of(ranking))
    if target is not None:
        _copy(ranking, target)
    if as_json:
        output.as_json(_described(mixture, ranking))
    else:
        _tell(mixture, ranking)


def _measured(
    mixture: Mixture,
    prompts: tuple[prompt_files.Asked, ...],
    *,
    tokens: int,
    ctx: int,
    threads: int | None,
) -> Ranking:
    model, resources = mixture.model, hardware.measure()
    is_larger = model.size_bytes > resources.memory_free
    if is_larger:
        output.note(
            f"{model.id} has {model.size_bytes / 1e9:.1f} GB, and {resources.memory_free / 1e9:.1f}"
            " GB of memory are free: it is read from the disk again and again, which takes long"
        )
    with _bar() as show:
        counted = trio.run(partial(count, progress=show), Count(
            name=model.id,
            path=str(mixture.file(partial(show, "Putting together"))),
            family=model.architecture,
            experts=mixture.layout.experts,
            prompts=prompts,
            tokens=tokens,
            context=min(ctx, model.context_length or ctx),
            threads=threads or usual_threads(),
            memory_limit=resources.memory_free,
            is_larger=is_larger,
        ))  # fmt: skip
    output.note(f"{model.id} has read {counted.read} tokens and written {counted.written}")
    return ranking_of(counted, mixture.digest, mixture.layout)


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error, where that is a terminal."""
    with output.progress() as show:

        def draw(what: str, done: float) -> None:
            full = int(done * _BAR)
            show(f"{what} [{'#' * full}{'.' * (_BAR - full)}] {done:4.0%}")

        yield draw


def _copy(ranking: Ranking, path: Path) -> None:
    try:
        path.write_bytes(encode_ranking(ranking))
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


# What is shown


def _described(mixture: Mixture, ranking: Ranking) -> dict[str, Any]:
    return {
        "model": mixture.model.id,
        "digest": ranking.model,
        "path": str(place(ranking.model)),
        "tokens": ranking.tokens,
        "experts": ranking.experts,
        "experts_used": ranking.used,
        "layers": [_layer(one) for one in ranking.layers],
    }


def _layer(layer: LayerRanking) -> dict[str, Any]:
    order = sorted(range(len(layer.shares)), key=lambda one: (-layer.shares[one], one))
    return {
        "layer": layer.layer,
        "counted": layer.is_counted,
        "top": order[0],
        "top_mass": layer.shares[order[0]],
        "experts_for": {f"{share:.2f}": taking(layer.shares, share) for share in SHARES},
        "experts": [
            {"expert": one, "count": layer.counts[one], "mass": layer.shares[one]} for one in order
        ],
    }


def taking(shares: tuple[float, ...], wanted: float) -> int:
    """How many of the most used experts take that share of the routing."""
    sums = accumulate(sorted(shares, reverse=True))
    return next((at for at, total in enumerate(sums, 1) if total >= wanted), len(shares))


def _tell(mixture: Mixture, ranking: Ranking) -> None:
    output.line(
        f"{mixture.model.id}: {len(ranking.layers)} layers with {ranking.experts} experts, "
        f"{ranking.used} used by a token; {ranking.tokens} tokens counted"
    )
    titles = [f"{share:.0%} OF MASS" for share in SHARES]
    output.table(("LAYER", "MOST USED", "ITS MASS", *titles), [_row(one) for one in ranking.layers])
    output.line(f"The ranking is kept in {place(ranking.model)}")


def _row(layer: LayerRanking) -> list[str]:
    if not layer.is_counted:
        return [str(layer.layer), *["-"] * (2 + len(SHARES))]
    top = max(range(len(layer.shares)), key=layer.shares.__getitem__)
    each = [f"{taking(layer.shares, share)} experts" for share in SHARES]
    return [str(layer.layer), f"expert {top}", f"{layer.shares[top]:.1%}", *each]
