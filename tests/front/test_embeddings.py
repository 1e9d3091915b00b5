import base64
import json
import struct
from typing import Any

import pytest
from openai.types import embedding_create_params

from p2p_mesh.core.records import EmbedQuery, Reply, Scores, Vectors
from p2p_mesh.errors import RemoteError, RequestError
from p2p_mesh.front.embeddings import Embeddings, embeddings_wanted


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "mini", "input": "hello", **fields}


def vector(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def answer(*vectors: bytes, **fields: Any) -> dict[str, Any]:
    wanted = embeddings_wanted(body(input=["x"] * len(vectors), **fields))
    found = Embeddings(wanted)
    for query in wanted.queries:
        found.take(query, Vectors(vectors=vectors[: len(query.inputs)], prompt_tokens=5))
        vectors = vectors[len(query.inputs) :]
    return json.loads(found.body())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hello", ("hello",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_inputs(given: object, inputs: tuple[object, ...]) -> None:
    (query,) = embeddings_wanted(body(input=given)).queries
    assert query == EmbedQuery(model="mini", inputs=inputs)  # type: ignore[arg-type]


def test_long_lists_are_cut_in_order() -> None:
    texts = [str(place) for place in range(2048)]
    queries = embeddings_wanted(body(input=texts)).queries
    assert [text for query in queries for text in query.inputs] == texts
    assert {len(query.inputs) for query in queries} == {64}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [[1, -1]]}, "input[0][1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"truncate": True}, "truncate"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        embeddings_wanted(body(**fields))
    assert caught.value.param == param


def test_no_field_of_openais_is_unknown() -> None:
    for field in embedding_create_params.EmbeddingCreateParams.__annotations__:
        try:
            embeddings_wanted(body(**{field: {}}))
        except RequestError as error:
            assert error.param == field  # noqa: PT017


def test_vectors_as_numbers() -> None:
    assert answer(vector(1, 0), vector(0, -1)) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.0, -1.0]},
        ],
        "model": "mini",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_vectors_as_base64() -> None:
    (item,) = answer(vector(0.6, 0.8), encoding_format="base64")["data"]
    assert base64.b64decode(item["embedding"]) == vector(0.6, 0.8)


def test_replies_follow_one_another() -> None:
    found = answer(*[vector(place, 1) for place in range(130)])
    assert [item["embedding"][0] for item in found["data"]] == list(range(130))
    assert [item["index"] for item in found["data"]] == list(range(130))
    assert found["usage"]["prompt_tokens"] == 15


def test_fewer_dimensions_have_length_one_again() -> None:
    (item,) = answer(vector(3, 4, 12), dimensions=2)["data"]
    assert item["embedding"] == pytest.approx([0.6, 0.8])
    (item,) = answer(vector(0, 0, 1), dimensions=2)["data"]
    assert item["embedding"] == [0, 0]


def test_more_dimensions_than_there_are() -> None:
    assert answer(vector(1, 0), dimensions=2)["data"][0]["embedding"] == [1, 0]
    with pytest.raises(RequestError, match=r"is 3, .* have 2") as caught:
        answer(vector(1, 0), dimensions=3)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    "reply",
    [
        Scores(scores=(1.0,), prompt_tokens=1),
        Vectors(vectors=(), prompt_tokens=1),
        Vectors(vectors=(b"",), prompt_tokens=1),
        Vectors(vectors=(b"abc",), prompt_tokens=1),
        Vectors(vectors=(vector(float("nan")),), prompt_tokens=1),
        Vectors(vectors=(vector(float("inf"), float("-inf")),), prompt_tokens=1),
    ],
)
def test_reply_that_nobody_can_use_is_an_error(reply: Reply) -> None:
    wanted = embeddings_wanted(body())
    with pytest.raises(RemoteError):
        Embeddings(wanted).take(wanted.queries[0], reply)
