"""The models that a foreign server lists, as long as it lists them.

A server that is out of reach has withdrawn nothing: its models stay offered, and their engines end
and are opened again by the node. It is asked again soon, then ever later, up to once in POLL.

Sources of one command line say what they have in its order at first, however long each server takes
to reply: of models of one name, that of the server named first gets it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import httpx
import trio

from meshnode_openai_endpoint.engine import open_engine
from meshnode_openai_endpoint.messages import Listed, Listing, read
from meshnode_openai_endpoint.server import Server, is_local, name, open_server
from p2p_mesh.core.names import ModelId
from p2p_mesh.errors import MeshError
from p2p_mesh.serve.backend import Offer
from p2p_mesh.settings import Endpoint

POLL = 10.0
"""Seconds between two looks at the list."""

FIRST = 0.5
"""Seconds until the first try again; each later pause is twice the one before."""

MODELS = 128
"""Of one server. One that lists thousands, as brokers do, is cut off there."""

ITSELF = "it is this node itself, which serves its models anyway; leave this --endpoint out"

_OFFERED_ON = re.compile(r"@[^@/]+:\d+\Z")


class EndpointSource:
    """A source for one `--endpoint`; a transport stands for the network in tests."""

    def __init__(
        self,
        endpoint: Endpoint,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        before: EndpointSource | None = None,
        is_self: bool = False,
    ) -> None:
        self.spoken = trio.Event()
        """Set when it has said what its server has, or why it does not know."""
        self._endpoint = endpoint
        self._transport = transport
        self._before = before
        self._is_self = is_self

    @property
    def name(self) -> str:
        return name(self._endpoint.url)

    async def watch(
        self, offer: Callable[[Sequence[Offer]], None], note: Callable[[str], None]
    ) -> None:
        try:
            if self._is_self:
                note(ITSELF)
            else:
                await self._watch(offer, note)
        finally:
            self.spoken.set()
        await trio.sleep_forever()

    async def _watch(
        self, offer: Callable[[Sequence[Offer]], None], note: Callable[[str], None]
    ) -> None:
        async with open_server(self._endpoint, self._transport) as server:
            said, failures = "", 0
            while True:
                offers, news = await _look(server)
                failures = failures + 1 if offers is None else 0
                if self._before is not None:
                    await self._before.spoken.wait()
                if news and news != said:
                    note(news)
                said = news
                if offers is not None:
                    offer(offers)
                self.spoken.set()
                await server.rest(pause(failures))


async def _look(server: Server) -> tuple[list[Offer] | None, str]:
    """What the server has, None where that is not to be learned; and what to say of it."""
    try:
        found = read(await server.ask("models"), Listing)
    except MeshError as error:
        return None, str(error)
    return [_offer(server, model) for model in offered(found)], cut(found)


def is_own(url: str, port: int) -> bool:
    """Whether a URL is that of this node's API, which answers on that port."""
    return is_local(url) and name(url).endswith(f":{port}")


def pause(failures: int) -> float:
    """Seconds until the list is looked at again, after so many failures in a row."""
    return min(POLL, FIRST * 2.0 ** min(failures - 1, 16)) if failures else POLL


def _offer(server: Server, model: Listed) -> Offer:
    return Offer(model_id(model), partial(open_engine, server, model))


def offered(found: Listing) -> list[Listed]:
    """Each model once, under a name that can be shown. What a node of meshnode offers from
    another server is passed over: two nodes that name one another would offer it for ever anew.
    """
    by_id = {model_id(one): one for one in reversed(found.data) if _is_good(one)}
    return list(reversed(by_id.values()))[:MODELS]


def _is_good(model: Listed) -> bool:
    found = model_id(model)
    return (
        0 < len(found) <= 200
        and found.isprintable()
        and not (model.owned_by == "meshnode" and _OFFERED_ON.search(found))
    )


def model_id(model: Listed) -> ModelId:
    """The server's name for it; of a file's path, which llama-server gives, the file's stem."""
    if model.id.endswith(".gguf"):
        return ModelId(re.split(r"[/\\]", model.id)[-1].removesuffix(".gguf"))
    return ModelId(model.id)


def cut(found: Listing) -> str:
    """What to say of a list that is longer than what is offered."""
    if len(found.data) <= MODELS:
        return ""
    return f"it lists {len(found.data)} models; the first {MODELS} are offered"
