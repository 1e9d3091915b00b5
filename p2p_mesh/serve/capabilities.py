"""What a model must be able to do for a question, and what is said where it is not."""

from __future__ import annotations

from p2p_mesh.core.records import EmbedQuery, Query, RerankQuery
from p2p_mesh.serve.backend import Capability

LACKS = {
    "generate": "writes no text",
    "embed": "makes no embeddings",
    "rerank": "ranks no documents",
    "vision": "takes no images",
    "audio": "takes no sounds",
}
"""What is said of a model that has not the capability."""


def needed(query: Query) -> Capability | None:
    """What an engine must declare for a query; nothing for one of its vocabulary."""
    match query:
        case EmbedQuery():
            return "embed"
        case RerankQuery():
            return "rerank"
    return None
