"""Loads plugins, the bundled and everybody else's in the same way, and calls their hooks.

pluggy's own loader stops at the first entry point that fails to import, and its callers pass on
what an implementation raises. Here each plugin stands for itself: whatever it does wrong, it is
skipped, the reason is kept for `meshnode plugins`, and the others go on.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import click
import pluggy
import trio
from starlette.routing import BaseRoute

from p2p_mesh import hookspecs
from p2p_mesh.errors import LocalError
from p2p_mesh.hookspecs import API_VERSION, PROJECT, Event, Topic
from p2p_mesh.serve.backend import Attached, Backend, Mesh, Source
from p2p_mesh.settings import Settings

SECONDS = 5.0
"""How long a hook, or the import of a plugin, may take."""

T = TypeVar("T")


@dataclass(slots=True)
class Plugin:
    name: str
    version: str
    state: Literal["active", "skipped"] = "active"
    reason: str = ""


class Plugins:
    """The plugins of this process, by name."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: dict[str, Plugin] = {}
        self._seconds = seconds
        self._backends: tuple[tuple[str, Backend], ...] = ()
        self._sources: tuple[Source, ...] = ()
        self._topics: tuple[Topic, ...] = ()
        self._routes: dict[str, list[BaseRoute]] = {}

    def load(self) -> None:
        """Loads every entry point of the group; what fails is skipped."""
        for point in importlib.metadata.entry_points(group=PROJECT):
            version = point.dist.version if point.dist else ""
            self.add(point.name, point.load, version=version)

    def add(self, name: str, load: Callable[[], object], *, version: str = "") -> None:
        """Registers the plugin that `load` returns."""
        if name in self._plugins:
            name = f"{name} ({len(self._plugins)})"
        self._plugins[name] = Plugin(name, version)
        try:
            plugin = within(self._seconds, load)
            _check(plugin)
            self._manager.register(plugin, name=name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - any failure is the plugin's own
            self._skip(name, f"{type(error).__name__}: {error}")

    def report(self) -> tuple[Plugin, ...]:
        return tuple(self._plugins.values())

    def ask(self, settings: Settings | None = None) -> None:
        """Calls the hooks that a node needs, once and before it starts: a hook may take seconds,
        and nobody waits for it on the node's loop. Without settings there are no sources.
        """
        self._backends = tuple(self._each("meshnode_backends", _backend))
        if settings is not None:
            found = self._each("meshnode_sources", _source, settings=settings)
            self._sources = tuple(one for _, one in found)
        self._topics = tuple(one for _, one in self._each("meshnode_topics", _topic))
        self._routes = {}
        for name, route in self._each("meshnode_routes", _route):
            self._routes.setdefault(name, []).append(route)

    def backends(self) -> tuple[Backend, ...]:
        """What `ask` got; the same for sources, routes and topics."""
        return tuple(backend for _, backend in self._backends)

    def attach(self, mesh: Mesh) -> None:
        """Shows the mesh to the backends that have to do with it from a node's start on. The
        plugin of one that raises is skipped; its backends stay.
        """
        for name, backend in self._backends:
            try:
                if isinstance(backend, Attached):
                    backend.attach(mesh)
            except Exception as error:  # noqa: BLE001 - a plugin's own
                self._skip(name, f"attach: {type(error).__name__}: {error}")

    def sources(self) -> tuple[Source, ...]:
        return self._sources

    def routes(self) -> Mapping[str, Sequence[BaseRoute]]:
        return self._routes

    def topics(self) -> tuple[Topic, ...]:
        return self._topics

    def commands(self, group: click.Group) -> None:
        """Lets plugins add commands, but not replace any."""
        for name in self._implementers("meshnode_commands"):
            extra = click.Group()
            for _ in self._call("meshnode_commands", only=name, group=extra):
                pass
            for command, body in extra.commands.items():
                if command in group.commands:
                    self._skip(name, f"its command {command!r} exists already")
                else:
                    group.add_command(body, command)

    async def tell(self, event: Event) -> None:
        """Passes an event to every plugin that wants it; one that raises or hangs is skipped."""
        for implementation in self._manager.hook.meshnode_event.get_hookimpls():
            try:
                answer = implementation.function(event)
                if inspect.isawaitable(answer):
                    with trio.fail_after(self._seconds):
                        await answer
            except Exception as error:  # noqa: BLE001 - a plugin's defect must not reach the node
                self._skip(
                    implementation.plugin_name, f"meshnode_event: {type(error).__name__}: {error}"
                )

    def _each(self, hook: str, check: Callable[[Any], T], **given: Any) -> Iterable[tuple[str, T]]:
        """The checked elements of the lists that a hook's implementations return."""
        for name, answer in self._call(hook, **given):
            try:
                yield from [(name, check(one)) for one in answer]
            except (LocalError, TypeError) as error:
                self._skip(name, f"{hook}: {error}")

    def _call(self, hook: str, only: str | None = None, **given: Any) -> list[tuple[str, Any]]:
        answers = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            name = implementation.plugin_name
            if only not in (None, name):
                continue
            wanted = {key: given[key] for key in implementation.argnames}
            try:
                answer = within(self._seconds, lambda: implementation.function(**wanted))  # noqa: B023
            except (Exception, SystemExit) as error:  # noqa: BLE001 - see the module's docstring
                self._skip(name, f"{hook}: {type(error).__name__}: {error}")
                continue
            answers.append((name, answer))
        return answers

    def _implementers(self, hook: str) -> list[str]:
        return [one.plugin_name for one in getattr(self._manager.hook, hook).get_hookimpls()]

    def _skip(self, name: str, reason: str) -> None:
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        plugin = self._plugins[name]
        plugin.state, plugin.reason = "skipped", reason[:500]


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; TimeoutError after `seconds`. A call that hangs is left
    behind in a thread that does not keep the process alive.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            value = call()
            outcome.append(lambda: value)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - raised again in the caller
            outcome.append(_raiser(error))

    thread = threading.Thread(target=run, daemon=True, name="plugin")
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"it did not end within {seconds:g} s")
    return outcome[0]()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again


def _check(plugin: object) -> None:
    """Raises LocalError for another API version, or a hook that does not exist."""
    wanted = getattr(plugin, "meshnode_api", None)
    if wanted != API_VERSION:
        raise LocalError(f"it is for plugin API {wanted}, this is {API_VERSION}")
    marker = f"{PROJECT}_impl"
    for name in dir(plugin):
        if hasattr(getattr(plugin, name, None), marker) and not hasattr(hookspecs, name):
            raise LocalError(f"there is no hook {name!r}")


def _backend(found: Any) -> Backend:
    backend: Backend = _having(found, "backend", "name", "assess", "open")
    return backend


def _source(found: Any) -> Source:
    source: Source = _having(found, "source", "name", "watch")
    return source


def _having(found: Any, what: str, *parts: str) -> Any:
    """Raises LocalError for what lacks a part of such a thing."""
    missing = [part for part in parts if not hasattr(found, part)]
    if missing:
        raise LocalError(f"{found!r} is no {what}: it has no {', '.join(missing)}")
    return found


def _route(found: Any) -> BaseRoute:
    if not isinstance(found, BaseRoute):
        raise LocalError(f"{found!r} is no route of Starlette")
    return found


def _topic(found: Any) -> Topic:
    if not isinstance(found, Topic):
        raise LocalError(f"{found!r} is no Topic")
    return found
