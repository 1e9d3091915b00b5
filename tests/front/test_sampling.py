from typing import Any

import pytest

from p2p_mesh.core.records import Sampling
from p2p_mesh.errors import RequestError
from p2p_mesh.front.sampling import one_of, sampling, stop
from p2p_mesh.http.body import Fields, integer


def read(**fields: Any) -> Sampling:
    return sampling(Fields(fields), 7)


def wrong(**fields: Any) -> str | None:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    return caught.value.param


def test_nothing_chosen_is_the_default_with_the_drawn_seed() -> None:
    assert read() == Sampling(seed=7)


def test_all_that_can_be_chosen() -> None:
    assert read(
        temperature=0, top_k=20, top_p=0.5, min_p=0, repeat_penalty=1.1, presence_penalty=-2,
        frequency_penalty=2, seed=3, logit_bias={"50": -100, "7": 1.5},
    ) == Sampling(
        temperature=0, top_k=20, top_p=0.5, min_p=0, repeat_penalty=1.1, presence_penalty=-2,
        frequency_penalty=2, seed=3, logit_bias=((7, 1.5), (50, -100.0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "logit_bias"),
        ({"a": 1}, "logit_bias"),
        ({"-1": 1}, "logit_bias"),
        ({"1_0": 1}, "logit_bias"),
        ({"٣": 1}, "logit_bias"),
        ({"2147483648": 1}, "logit_bias"),
        ({"5": 1, "05": 1}, "logit_bias"),
        ({"5": 101}, "logit_bias[5]"),
        ({"5": "1"}, "logit_bias[5]"),
        ({"5": None}, "logit_bias[5]"),
        ({str(token): 1 for token in range(1025)}, "logit_bias"),
    ],
)
def test_wrong_bias_is_named(value: object, param: str) -> None:
    assert wrong(logit_bias=value) == param


def test_as_many_biases_as_there_may_be() -> None:
    assert len(read(logit_bias={str(token): 1 for token in range(1024)}).logit_bias) == 1024


@pytest.mark.parametrize(
    ("seed", "kept"), [(0, 0), (2**63 - 1, 2**63 - 1), (-1, 2**63 - 1), (-(2**63), 0)]
)
def test_every_seed_is_kept_in_63_bits(seed: int, kept: int) -> None:
    assert read(seed=seed).seed == kept


def test_names_of_one_thing_must_agree() -> None:
    number = integer(0, 9)
    assert one_of(Fields({"a": 1}), "a", "b", number) == 1
    assert one_of(Fields({"b": 1}), "a", "b", number) == 1
    assert one_of(Fields({"a": 0, "b": 0}), "a", "b", number) == 0
    assert one_of(Fields({}), "a", "b", number) is None
    with pytest.raises(RequestError, match="a and b differ"):
        one_of(Fields({"a": 0, "b": 1}), "a", "b", number)


def test_stop_is_one_string_or_several() -> None:
    assert stop("a", "stop") == ("a",)
    assert stop(["a", "b"], "stop") == ("a", "b")
    assert stop([], "stop") == ()
