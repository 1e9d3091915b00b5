"""Models of any running OpenAI-compatible server, as engines of this node.

A server of `--endpoint` is a source (source.py): each model that it lists becomes an engine
(engine.py) that passes questions on over HTTP (server.py). The server is a stranger: what it sends
is bounded and checked before it is believed.
"""

from __future__ import annotations

from meshnode_openai_endpoint.source import EndpointSource, is_own
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.serve.backend import Source
from p2p_mesh.settings import Settings, endpoints

meshnode_api = 1


@hookimpl
def meshnode_sources(settings: Settings) -> list[Source]:
    found: list[EndpointSource] = []
    for one in endpoints(settings):
        before = found[-1] if found else None
        found.append(EndpointSource(one, before=before, is_self=is_own(one.url, settings.port)))
    return list(found)
