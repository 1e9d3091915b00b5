"""What a ranking says, what it may be, and how two become one."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2p_mesh.core.experts.layout import Layer, Layout, Sliced
from p2p_mesh.core.experts.ranking import (
    MAX_RANKING,
    LayerRanking,
    Ranking,
    check_ranking,
    decode_ranking,
    encode_ranking,
    file_name,
    merge,
    uniform,
)
from p2p_mesh.core.names import Digest
from p2p_mesh.errors import ModelError

MODEL = Digest("ab" * 32)
LAYOUT = Layout(4, 2, tuple(Layer(number, 2, (Sliced("w", 0, 10),)) for number in (1, 2)))


def ranking(*masses: tuple[float, ...], tokens: int = 100) -> Ranking:
    """Layers 1, 2 and so on."""
    layers = tuple(
        LayerRanking(layer=number, counts=tuple(math.ceil(one) for one in own), masses=own)
        for number, own in enumerate(masses, 1)
    )
    return Ranking(model=MODEL, tokens=tokens, experts=len(masses[0]), used=2, layers=layers)


rankings = st.integers(1, 3).flatmap(
    lambda layers: st.lists(
        st.tuples(*[st.floats(0, 100)] * 4), min_size=layers, max_size=layers
    ).map(lambda masses: ranking(*masses))
)


def test_shares_are_of_all_that_was_counted() -> None:
    found = ranking((30, 10, 0, 0), (0, 0, 0, 0))
    assert found.shares(1) == (0.75, 0.25, 0, 0)
    assert found.shares(2) == (0.25,) * 4  # nothing was counted
    with pytest.raises(ModelError, match="no layer 3"):
        found.shares(3)


def test_layer_of_which_nothing_was_counted_is_left_out_of_the_mean() -> None:
    found = ranking((30, 10, 0, 0), (50, 50, 0, 0), (0, 0, 0, 0))
    kept = found.kept(((0,), (0,), (0,)))
    assert kept == (0.75, 0.5, 0.25)
    assert found.mean(kept) == 0.625
    assert found.mass(((0,), (0,), (0,))) == 0.625
    assert uniform(MODEL, LAYOUT).mass(((0,), (0, 1, 2))) == 0.5


@given(rankings)
def test_shares_add_up_to_one_and_all_experts_keep_everything(found: Ranking) -> None:
    for layer in found.layers:
        assert math.isclose(math.fsum(layer.shares), 1)
    assert found.mass([range(4)] * len(found.layers)) == 1


@given(rankings)
def test_ranking_survives_its_bytes(found: Ranking) -> None:
    data = encode_ranking(found)
    assert decode_ranking(data) == found
    assert encode_ranking(decode_ranking(data)) == data


@given(st.data())
def test_merging_is_counting_both(data: st.DataObject) -> None:
    first = data.draw(rankings)
    number = len(first.layers)
    second = ranking(*data.draw(st.lists(st.tuples(*[st.floats(0, 100)] * 4),
                                         min_size=number, max_size=number)))  # fmt: skip
    both = merge(first, second)
    assert both == merge(second, first)
    assert both.tokens == 200
    assert decode_ranking(encode_ranking(both)) == both
    assert both.layers[0].masses[0] == first.layers[0].masses[0] + second.layers[0].masses[0]
    assert merge(first, uniform_like(first)) == first


def uniform_like(found: Ranking) -> Ranking:
    layers = tuple(replace(one, counts=(0,) * 4, masses=(0.0,) * 4) for one in found.layers)
    return replace(found, tokens=0, layers=layers)


def test_rankings_of_two_models_do_not_add_up() -> None:
    one = ranking((1, 1, 0, 0))
    for other in (ranking((1, 1, 0)), ranking((1, 1, 0, 0), (1, 1, 0, 0)),
                  replace(one, model=Digest("0" * 64)), replace(one, used=1)):  # fmt: skip
        with pytest.raises(ModelError, match="two models"):
            merge(one, other)


def test_ranking_fits_the_model_it_is_of() -> None:
    check_ranking(uniform(MODEL, LAYOUT), LAYOUT)
    check_ranking(ranking((1, 1, 0, 0), (1, 1, 0, 0)), LAYOUT)
    with pytest.raises(ModelError, match=r"1 layers with 4 experts.*2 with 4.*analyze"):
        check_ranking(ranking((1, 1, 0, 0)), LAYOUT)


def test_file_is_named_after_the_model() -> None:
    assert file_name(MODEL) == f"{MODEL}.ranking"


LIES = [
    ({"version": 2}, "version 2"),
    ({"model": "AB" * 32}, "model"),
    ({"tokens": -1}, "tokens"),
    ({"experts": 5}, "not of 5 experts"),
    ({"experts": 4097}, "experts"),
    ({"used": 5}, "5 of 4 experts"),
    ({"layers": []}, "layers"),
    ({"layers": [{"layer": 4096, "counts": [], "masses": []}]}, "layer"),
    ({"layers": [{"layer": 1, "counts": [0] * 4, "masses": [0.0] * 4}] * 2}, "do not rise"),
    ({"layers": [{"layer": 1, "counts": [0] * 3, "masses": [0.0] * 4}]}, "not of 4"),
    ({"layers": [{"layer": 1, "counts": [101] * 4, "masses": [0.0] * 4}]}, "101"),
    ({"layers": [{"layer": 1, "counts": [1] * 4, "masses": [2.0] * 4}]}, "2.0"),
    ({"layers": [{"layer": 1, "counts": [1] * 4, "masses": [-0.5] * 4}]}, "masses"),
    ({"layers": [{"layer": 1, "counts": [1] * 4, "masses": [math.nan] * 4}]}, "masses"),
    ({"layers": [{"layer": 1, "counts": [1] * 4, "masses": [math.inf] * 4}]}, "masses"),
]


@pytest.mark.parametrize(("lie", "words"), LIES)
def test_ranking_that_cannot_be_is_refused(lie: dict[str, object], words: str) -> None:
    honest = msgspec.to_builtins(ranking((1, 1, 0, 0)))
    with pytest.raises(ModelError, match=words):
        decode_ranking(msgspec.msgpack.encode(honest | lie))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_ranking_or_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        decode_ranking(data)


def test_ranking_has_a_size() -> None:
    with pytest.raises(ModelError, match="is the limit"):
        decode_ranking(bytes(MAX_RANKING + 1))
