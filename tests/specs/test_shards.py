"""The vectors of specs/shards, read and made by this code."""

import json
from pathlib import Path
from typing import Any

import pytest

from p2p_mesh.core.experts.assignment import Assignment, assign
from p2p_mesh.core.experts.known import MASS, Known, keys, shard_of
from p2p_mesh.core.experts.layout import Layer, Layout, Sliced
from p2p_mesh.core.experts.ranking import Ranking, decode_ranking, encode_ranking
from p2p_mesh.core.gguf import Header
from p2p_mesh.core.records import Shard

PAGE: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "specs" / "vectors" / "shards.json").read_bytes()
)


def ranking() -> Ranking:
    return decode_ranking(bytes.fromhex(PAGE["ranking"]))


def parts(keep: int = 6) -> Assignment:
    of = Layout(8, 2, tuple(Layer(number, 2, (Sliced("w", 0, 1),)) for number in (1, 2)))
    found = assign(ranking(), 3, layout=of, keep=keep, min_mass=0.85)
    assert isinstance(found, Assignment)
    return found


def test_ranking_is_read_and_made_again() -> None:
    assert encode_ranking(ranking()).hex() == PAGE["ranking"]
    assert (ranking().tokens, ranking().experts) == (100, 8)


@pytest.mark.parametrize("page", PAGE["assignments"], ids=lambda page: f"keep {page['keep']}")
def test_every_node_comes_to_the_same_parts(page: dict[str, Any]) -> None:
    found = parts(page["keep"])
    assert found.overlap == page["overlap"]
    assert [[list(own) for own in part.experts] for part in found.parts] == page["experts"]
    assert [list(part.masses) for part in found.parts] == page["masses"]


def test_keys_of_a_shard_are_made_and_read_again() -> None:
    part = parts().parts[0]
    shard = Shard(model=ranking().model, mass=part.mass)
    known = Known(shard, 8, part.experts, 0, 3)
    assert json.loads(json.dumps(keys(known))) == PAGE["keys"]
    told = {key: tuple(value) if isinstance(value, list) else value
            for key, value in PAGE["keys"].items()}  # fmt: skip
    header = {"general.architecture": "moe", "moe.expert_count": 6, **told}
    assert shard_of(Header(header, ())) == known
    assert shard_of(Header({**header, MASS: 0.5}, ())) != known
