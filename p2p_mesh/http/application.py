"""An application on either port: routes behind the guard, with every failure in one shape."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2p_mesh.errors import MeshError
from p2p_mesh.http.failure import INTERNAL, Failure, failure
from p2p_mesh.http.guard import Access, Guard, Policy
from p2p_mesh.journal import Journal


def application(
    routes: Sequence[BaseRoute], *, policy: Policy, access: Access, journal: Journal
) -> ASGIApp:
    """Routes as an ASGI application that answers whatever happens."""
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, policy, access), Middleware(Boundary, journal)],
        exception_handlers={MeshError: _mesh_error, HTTPException: _http_exception},
    )
    # A redirect to the path without its slash would lose the body with most clients.
    app.router.redirect_slashes = False
    return app


def _mesh_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)
    return failure(error).response()


def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path[:200]}"
    headers = dict(error.headers or {})
    if error.status_code == 404:
        found = Failure(404, "not_found", f"there is no {asked} here")
    elif error.status_code == 405:
        message = f"{asked} is not possible; allowed: {headers.get('Allow', '')}"
        found = Failure(405, "method_not_allowed", message, headers=headers)
    else:
        found = Failure(error.status_code, "error", error.detail, headers=headers)
    return found.response()


class Boundary:
    """Keeps what nobody foresaw in the journal and away from the client."""

    def __init__(self, app: ASGIApp, journal: Journal) -> None:
        self._app = app
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def watched(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001  one request's end is not the node's
            report(self._journal, scope, error)
            # A response that has begun is left without its end, so that it shows as cut off.
            if not is_begun:
                await INTERNAL.response()(scope, receive, send)


def report(journal: Journal, scope: Scope, error: Exception) -> None:
    """Writes down an error that nobody foresaw."""
    asked = f"{scope['method']} {scope['path'][:200]}"
    journal.error(
        "http_failed",
        f"{asked} failed: {error!r}",
        path=scope["path"],
        reason=repr(error),
        traceback="".join(traceback.format_exception(error)),
    )
