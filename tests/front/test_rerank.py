from typing import Any

import pytest

from p2p_mesh.core.records import Reply, RerankQuery, Scores, Tokens
from p2p_mesh.errors import RemoteError, RequestError
from p2p_mesh.front.rerank import Ranking, ranking_wanted


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "judge", "query": "sea?", "documents": ["a", {"text": "b"}, "c"], **fields}


def ranked(*scores: float, **fields: Any) -> dict[str, Any]:
    wanted = ranking_wanted(body(**fields))
    ranking = Ranking(wanted)
    for query in wanted.queries:
        count = len(query.documents)
        ranking.take(query, Scores(scores=scores[:count], prompt_tokens=5))
        scores = scores[count:]
    return ranking.body()


def test_query() -> None:
    wanted = ranking_wanted(body())
    assert wanted.queries == (
        RerankQuery(model="judge", query="sea?", documents=("a", "b", "c")),  # type: ignore[arg-type]
    )
    assert (wanted.top, wanted.with_documents) == (3, True)


def test_best_comes_first() -> None:
    assert ranked(0.1, 0.9, -3.5) == {
        "object": "list",
        "model": "judge",
        "results": [
            {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
            {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
            {"index": 2, "relevance_score": -3.5, "document": {"text": "c"}},
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_only_the_best_and_only_their_places() -> None:
    found = ranked(0.5, 0.5, 0.9, top_n=2, return_documents=False)["results"]
    assert found == [{"index": 2, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.5}]
    assert len(ranked(1, 2, 3, top_n=99)["results"]) == 3


def test_long_lists_are_several_queries() -> None:
    documents = [str(place) for place in range(150)]
    found = ranked(*range(150), documents=documents, top_n=2)
    assert [one["document"]["text"] for one in found["results"]] == ["149", "148"]
    assert found["usage"]["prompt_tokens"] == 15


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"query": ""}, "query"),
        ({"query": {"text": "x"}}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"documents": ["a", 1]}, "documents[1]"),
        ({"documents": [{"image": "x"}]}, "documents[0].text"),
        ({"documents": [{"text": "x", "image": "x"}]}, "documents[0].image"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"truncation": True}, "truncation"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ranking_wanted(body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "reply",
    [
        Tokens(tokens=()),
        Scores(scores=(1.0,), prompt_tokens=1),
        Scores(scores=(1.0, 2.0, float("nan")), prompt_tokens=1),
    ],
)
def test_reply_that_nobody_can_use_is_an_error(reply: Reply) -> None:
    wanted = ranking_wanted(body())
    with pytest.raises(RemoteError):
        Ranking(wanted).take(wanted.queries[0], reply)
