"""What a question needs of a model."""

from typing import get_args

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import DetokenizeQuery, EmbedQuery, RerankQuery
from p2p_mesh.serve.backend import Capability
from p2p_mesh.serve.capabilities import LACKS, needed


def test_queries_need_what_they_are_named_after() -> None:
    model = ModelId("m")
    assert needed(EmbedQuery(model=model, inputs=("x",))) == "embed"
    assert needed(RerankQuery(model=model, query="x", documents=("y",))) == "rerank"
    assert needed(DetokenizeQuery(model=model, tokens=(1,))) is None


def test_whatever_a_model_lacks_has_words() -> None:
    assert set(LACKS) <= set(get_args(Capability))
