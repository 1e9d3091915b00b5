"""What the header of an expert shard says, and what it must not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.experts import known
from p2p_mesh.core.experts.known import Known, keys, shard_of
from p2p_mesh.core.gguf import Header, Value
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import Shard
from p2p_mesh.errors import ModelError
from tests.core.experts.headers import mixture

MODEL = Digest("ab" * 32)
SHARD = Known(Shard(model=MODEL, mass=0.75), 16, ((0, 1, 2, 3, 9, 12, 14, 15),), 1, 3)


def header(found: Known = SHARD, **changed: Value | None) -> Header:
    """Of a file with one layer of 8 experts, and these keys."""
    told: dict[str, Any] = {**keys(found), **{f"{known.PREFIX}{key}": value
                                              for key, value in changed.items()}}  # fmt: skip
    of = mixture()
    return Header({**of.metadata, **{key: value for key, value in told.items()
                                     if value is not None}}, of.tensors)  # fmt: skip


def test_shard_is_known_by_its_header() -> None:
    assert shard_of(header()) == SHARD
    assert shard_of(mixture()) is None


def test_package_of_a_shard_has_its_layers_elsewhere() -> None:
    found = header()
    assert shard_of(Header(found.metadata, ())) == SHARD


def test_experts_are_bits_of_words() -> None:
    two = Known(SHARD.shard, 40, ((0, 31, 32, 39), (1, 2, 3, 4)), 0, 1)
    assert keys(two)[known.EXPERTS] == (1 | 1 << 31, 1 | 1 << 7, 0b11110, 0)


@given(st.integers(1, 4), st.integers(2, 200), st.data())
def test_what_is_said_is_what_is_read(layers: int, of: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, of))
    own = st.permutations(range(of)).map(lambda all_: tuple(sorted(all_[:keep])))
    experts = tuple(data.draw(own) for _ in range(layers))
    said = Known(SHARD.shard, of, experts, 0, 1)
    told = {"general.architecture": "moe", "moe.expert_count": keep, **keys(said)}
    assert shard_of(Header(told, ())) == said


def test_more_experts_than_a_header_can_name_are_refused() -> None:
    experts = ((0, 1),) * 512
    assert keys(Known(SHARD.shard, 256, experts, 0, 1))
    with pytest.raises(ModelError, match="512 layers of 257 experts are more"):
        keys(Known(SHARD.shard, 257, experts, 0, 1))


@pytest.mark.parametrize(("changed", "words"), [
    ({"model": "AB" * 32}, "is no digest"),
    ({"model": 7}, "is no digest"),
    ({"mass": None}, "mass is not between 0 and 1"),
    ({"mass": float("nan")}, "mass is not between 0 and 1"),
    ({"mass": 1.5}, "mass is not between 0 and 1"),
    ({"mass": True}, "mass is not between 0 and 1"),
    ({"of": 7}, "of is no number from 8 to 4096"),
    ({"of": 5000}, "of is no number from 8 to 4096"),
    ({"of": None}, "of is no number"),
    ({"part": 3}, "part is no number from 0 to 2"),
    ({"part": True}, "part is no number"),
    ({"parts": 0}, "parts is no number"),
    ({"experts": None}, "not of 1 words for each layer"),
    ({"experts": ()}, "not of 1 words for each layer"),
    ({"of": 40, "experts": (1, 2, 3)}, "not of 2 words for each layer"),
    ({"experts": (-1,)}, "is no mask of bits"),
    ({"experts": (1 << 32,)}, "is no mask of bits"),
    ({"experts": (1.0,)}, "is no mask of bits"),
    ({"experts": (0x1FE00,)}, "names experts beyond 16"),
    ({"experts": (0x7F,)}, "does not name 8 experts of each layer"),
    ({"experts": (0xFF, 0xFF)}, "is not of 1 layers"),
])  # fmt: skip
def test_header_that_lies_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        shard_of(header(**changed))
