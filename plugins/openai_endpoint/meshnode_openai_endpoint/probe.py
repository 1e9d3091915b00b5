"""What a model of a foreign server can do, as far as the server lets one know.

OpenAI's own list says nothing but names. llama-server, Ollama, LM Studio, vLLM and other nodes of
meshnode say more, each at a place of its own; where nothing is said, the name decides, and whether
a model that writes also sees or hears is left to the server. Nothing here makes it load a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import quote

from meshnode_openai_endpoint.messages import Listed, loosely
from meshnode_openai_endpoint.server import Server
from p2p_mesh.errors import EngineDied, MeshError
from p2p_mesh.serve.backend import Capability

SLOTS = 8
"""Requests at a time, where the server does not say: it queues what it cannot answer."""

PATIENCE = 60.0
"""Seconds for one thing that is tried: it may be a token's work on a busy server."""

MOST_SLOTS = 256
_MOST_CONTEXT = 2**31

_KNOWN: frozenset[Capability] = frozenset(get_args(Capability)) - {"forward"}
_GENERATES: frozenset[Capability] = frozenset({"generate"})
_PERHAPS: frozenset[Capability] = frozenset({"generate", "vision", "audio"})

_RERANKS = re.compile(r"rerank", re.IGNORECASE)
_EMBEDS = re.compile(r"embed|(^|[/_-])(bge|e5|gte|minilm)([_-]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a model."""

    capabilities: frozenset[Capability] = _GENERATES
    context: int = 0
    """Tokens of one sequence; 0: unknown."""
    slots: int = SLOTS
    kind: Literal["llama-server", "meshnode", ""] = ""
    """The server's program, where it matters for what it can be asked."""


async def probe(server: Server, model: Listed) -> Found:
    """Raises EngineDied or Unavailable for a server that is not there, or not ready yet."""
    match model.owned_by:
        case "meshnode":
            return meshnode(model)
        case "llamacpp":
            return await _llama_server(server, model)
        case "vllm":
            can = await _pooled(server, model) or _PERHAPS
            return Found(can, _number(model.max_model_len))
    for ask in (_ollama, _lm_studio):
        if (found := await ask(server, model)) is not None:
            return found
    return by_name(model)


def meshnode(model: Listed) -> Found:
    """Another node says it all in its list."""
    about = _mapping(model.meshnode)
    can = _capabilities(about.get("capabilities"))
    return Found(can, _number(about.get("context")), kind="meshnode")


def by_name(model: Listed) -> Found:
    """A guess. A wrong one is mended by nobody, but the server refuses what it cannot do."""
    context = next(
        filter(None, map(_number, (model.max_model_len, model.context_length,
                                   model.context_window))), 0,
    )  # fmt: skip
    if _RERANKS.search(model.id):
        return Found(frozenset({"rerank"}), context)
    if _EMBEDS.search(model.id):
        return Found(frozenset({"embed"}), context)
    return Found(_PERHAPS, context)


def llama_server(model: Listed, props: Any, pooled: frozenset[Capability]) -> Found:
    """From /props, and from what was tried."""
    about, meta = _mapping(props), _mapping(model.meta)
    settings = _mapping(about.get("default_generation_settings"))
    senses = _mapping(about.get("modalities"))
    can = set(pooled or _GENERATES)
    if not pooled:
        can |= _capabilities([sense for sense, has in senses.items() if has is True], frozenset())
    context = _number(settings.get("n_ctx")) or _number(meta.get("n_ctx"))
    slots = _number(about.get("total_slots"), MOST_SLOTS)
    return Found(frozenset(can), context, slots or SLOTS, "llama-server")


def ollama(shown: Any) -> Found | None:
    """From /api/show; None for what is none. Its context is what a Modelfile sets: that of the
    training, which it tells too, is not what it runs with.
    """
    about = _mapping(shown)
    if not isinstance(about.get("capabilities"), list):
        return None
    names = {"completion": "generate", "embedding": "embed"}
    can = _capabilities([names.get(str(one), one) for one in about["capabilities"]])
    parameters = about.get("parameters")
    match = re.search(r"^num_ctx\s+(\d{1,9})\s*$", str(parameters or ""), re.MULTILINE)
    return Found(can, int(match[1]) if match else 0)


def lm_studio(shown: Any) -> Found | None:
    """From /api/v0/models/<id>; None for what is none."""
    about = _mapping(shown)
    kinds: dict[Any, frozenset[Capability]] = {
        "llm": _GENERATES,
        "vlm": frozenset({"generate", "vision"}),
        "embeddings": frozenset({"embed"}),
    }
    kind = about.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        return None
    loaded = _number(about.get("loaded_context_length"))
    return Found(kinds[kind], loaded or _number(about.get("max_context_length")))


async def _llama_server(server: Server, model: Listed) -> Found:
    await server.ask("/health")  # which fails while it loads
    return llama_server(model, await _maybe(server, "/props"), await _pooled(server, model))


async def _ollama(server: Server, model: Listed) -> Found | None:
    return ollama(await _maybe(server, "/api/show", {"model": model.id}))


async def _lm_studio(server: Server, model: Listed) -> Found | None:
    return lm_studio(await _maybe(server, f"/api/v0/models/{quote(model.id, safe='/@:')}"))


async def _pooled(server: Server, model: Listed) -> frozenset[Capability]:
    """What the model does instead of writing: such servers do one or the other. Asks for one
    token's work.
    """
    rerank = {"model": model.id, "query": "a", "documents": ["a"]}
    if await _does(server, "rerank", rerank, "results"):
        return frozenset({"rerank"})
    if await _does(server, "embeddings", {"model": model.id, "input": "a"}, "data"):
        return frozenset({"embed"})
    return frozenset()


async def _does(server: Server, path: str, body: dict[str, Any], field: str) -> bool:
    return field in _mapping(await _maybe(server, path, body))


async def _maybe(server: Server, path: str, body: Any = None) -> Any:
    """What a place says that not every server has; None where there is no such place."""
    try:
        return loosely(await server.ask(path, body, seconds=PATIENCE))
    except EngineDied:
        raise
    except MeshError:
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any, most: int = _MOST_CONTEXT) -> int:
    """A count; 0 for what is none."""
    return min(max(value, 0), most) if type(value) is int else 0


def _capabilities(
    names: Any, otherwise: frozenset[Capability] = _GENERATES
) -> frozenset[Capability]:
    told: Iterable[Any] = names if isinstance(names, list) else ()
    return frozenset(one for one in _KNOWN if one in told) or otherwise
