"""Each plugin stands for itself: what one does wrong is its own, and is listed."""

import sys
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import click
import pytest
import trio
from starlette.routing import Route
from trio.testing import MockClock

from p2p_mesh.hookspecs import Event, Topic, hookimpl
from p2p_mesh.plugins import Plugins, within
from p2p_mesh.settings import Settings
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.mesh import NoMesh


def plugin(api: Any = 1, **hooks: Any) -> object:
    marked = {name: hookimpl(function) for name, function in hooks.items()}
    return SimpleNamespace(meshnode_api=api, **marked)


def loaded(**found: Any) -> Plugins:
    plugins = Plugins(seconds=0.5)
    for name, one in found.items():
        plugins.add(name, one if callable(one) else partial(_same, one))
    plugins.ask()
    return plugins


def _same(one: object) -> object:
    return one


def nobody() -> list[object]:
    return []


def states(plugins: Plugins) -> dict[str, str]:
    return {one.name: one.reason or one.state for one in plugins.report()}


def fails(error: BaseException) -> Any:
    def call() -> Any:
        raise error

    return call


def test_bundled_plugin_loads_like_any_other() -> None:
    plugins = Plugins()
    plugins.load()
    plugins.ask()
    assert states(plugins)["llama_cpp"] == "active"
    names = [backend.name for backend in plugins.backends()]
    assert names == ["expert_shards", "flash_moe", "llama_cpp", "skippy"]


def test_sources_follow_the_settings() -> None:
    plugins = Plugins()
    plugins.load()
    plugins.ask(Settings(endpoint=("http://localhost:8080/v1",)))
    assert [source.name for source in plugins.sources()] == ["localhost:8080"]
    plugins.ask(Settings())
    assert plugins.sources() == ()


def test_nonsense_is_no_source() -> None:
    plugins = Plugins()
    plugins.add("bad", lambda: plugin(meshnode_sources=lambda settings: [settings.port]))
    plugins.ask()
    assert states(plugins) == {"bad": "active"}  # nobody asked for sources
    plugins.ask(Settings())
    assert "9337 is no source: it has no name, watch" in states(plugins)["bad"]


def test_broken_plugins_are_skipped_and_the_others_serve() -> None:
    plugins = loaded(
        missing=fails(ImportError("no module named 'gone'")),
        exits=fails(SystemExit(3)),
        old=plugin(api=0, meshnode_backends=nobody),
        bare=SimpleNamespace(),
        misspelt=plugin(meshnode_backend=nobody),
        good=plugin(meshnode_backends=lambda: [Echo()]),
    )
    assert [backend.name for backend in plugins.backends()] == ["echo"]
    found = states(plugins)
    assert found["good"] == "active"
    assert "no module named 'gone'" in found["missing"]
    assert "SystemExit" in found["exits"]
    assert "plugin API 0, this is 1" in found["old"]
    assert "plugin API None" in found["bare"]
    assert "no hook 'meshnode_backend'" in found["misspelt"]


def test_raising_and_hanging_hooks_are_skipped() -> None:
    release = threading.Event()
    plugins = loaded(
        raises=plugin(meshnode_backends=fails(KeyError("x"))),
        exits=plugin(meshnode_backends=fails(SystemExit(1))),
        hangs=plugin(meshnode_backends=lambda: release.wait(60)),
        nonsense=plugin(meshnode_backends=lambda: [42]),
        nothing=plugin(meshnode_backends=lambda: 42),
        good=plugin(meshnode_backends=lambda: [Echo()]),
    )
    assert [backend.name for backend in plugins.backends()] == ["echo"]
    release.set()
    found = states(plugins)
    assert "meshnode_backends: KeyError" in found["raises"]
    assert "SystemExit" in found["exits"]
    assert "did not end within 0.5 s" in found["hangs"]
    assert "is no backend: it has no name" in found["nonsense"]
    assert "not iterable" in found["nothing"]
    assert [backend.name for backend in plugins.backends()] == ["echo"]


def test_import_that_hangs_is_skipped() -> None:
    release = threading.Event()
    plugins = loaded(hangs=lambda: release.wait(60))
    release.set()
    assert "did not end" in states(plugins)["hangs"]


def test_two_plugins_of_one_name_are_both_listed() -> None:
    plugins = loaded(a=plugin())
    plugins.add("a", plugin)
    assert len(plugins.report()) == 2


def test_commands_are_added_but_none_is_replaced() -> None:
    def add(group: click.Group) -> None:
        group.add_command(click.Command("extra"))

    def take(group: click.Group) -> None:
        group.add_command(click.Command("run"))

    group = click.Group(commands={"run": click.Command("run")})
    ours = group.commands["run"]
    plugins = loaded(
        good=plugin(meshnode_commands=add),
        thief=plugin(meshnode_commands=take),
        broken=plugin(meshnode_commands=lambda group: 1 / 0),
    )
    plugins.commands(group)
    assert set(group.commands) == {"run", "extra"}
    assert group.commands["run"] is ours
    assert "'run' exists already" in states(plugins)["thief"]
    assert "ZeroDivisionError" in states(plugins)["broken"]


async def nothing(*_: Any) -> None: ...


def test_routes_and_topics() -> None:
    route = Route("/", endpoint=nothing)
    topic = Topic("t", receive=nothing, attach=lambda publish: None)
    plugins = loaded(
        good=plugin(meshnode_routes=lambda: [route], meshnode_topics=lambda: [topic]),
        bad=plugin(meshnode_topics=lambda: ["t"]),
        worse=plugin(meshnode_routes=lambda: 42),
        worst=plugin(meshnode_routes=lambda: ["/"]),
    )
    assert plugins.routes() == {"good": [route]}
    assert plugins.topics() == (topic,)
    assert "is no Topic" in states(plugins)["bad"]
    assert "not iterable" in states(plugins)["worse"]
    assert "is no route" in states(plugins)["worst"]


def test_backends_that_have_to_do_with_the_mesh_see_it() -> None:
    class Near(Echo):
        mesh: object = None

        def attach(self, mesh: object) -> None:
            self.mesh = mesh

    class Rash(Echo):
        def attach(self, mesh: object) -> None:
            raise RuntimeError("boom")

    near, mesh = Near(), NoMesh()
    plugins = loaded(
        rash=plugin(meshnode_backends=lambda: [Rash()]),
        plain=plugin(meshnode_backends=lambda: [Echo()]),
        near=plugin(meshnode_backends=lambda: [near]),
    )
    plugins.attach(mesh)
    assert near.mesh is mesh
    assert states(plugins) == {
        "rash": "attach: RuntimeError: boom", "plain": "active", "near": "active",
    }  # fmt: skip


async def test_events_reach_every_plugin(autojump_clock: MockClock) -> None:
    heard: list[str] = []

    async def listen(event: Event) -> None:
        await trio.sleep(0.1)
        heard.append(event.name)

    async def hang(event: Event) -> None:
        await trio.sleep(3600)

    plugins = loaded(
        raises=plugin(meshnode_event=lambda event: 1 / 0),
        hangs=plugin(meshnode_event=hang),
        plain=plugin(meshnode_event=lambda event: heard.append(event.name)),
        awaits=plugin(meshnode_event=listen),
    )
    await plugins.tell(Event("ready"))
    assert heard == ["ready", "ready"]
    assert "ZeroDivisionError" in states(plugins)["raises"]
    assert "meshnode_event: TooSlowError" in states(plugins)["hangs"]
    await plugins.tell(Event("stopped"))
    assert heard == ["ready"] * 2 + ["stopped"] * 2


async def test_cancellation_is_not_a_plugins_fault(autojump_clock: MockClock) -> None:
    async def hang(event: Event) -> None:
        await trio.sleep(3600)

    plugins = loaded(hangs=plugin(meshnode_event=hang))
    with trio.move_on_after(0.1) as scope:
        await plugins.tell(Event("ready"))
    assert scope.cancelled_caught
    assert states(plugins) == {"hangs": "active"}


def test_within_gives_back_what_the_call_gives() -> None:
    assert within(1.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(1.0, lambda: 1 // 0)
    with pytest.raises(SystemExit):
        within(1.0, sys.exit)
