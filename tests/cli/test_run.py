"""`meshnode run`, up to the point where a node would start; tests/real starts it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.cli import run
from p2p_mesh.cli.run import _has_mesh, _references, _run
from p2p_mesh.core.invite import make_invite, read_token
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import ModelError, SettingsError
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.settings import Settings, load


def test_without_a_model_the_bundled_one_is_served() -> None:
    assert _references(Settings()) == (DEFAULT_MODEL,)
    assert _references(Settings(model=("a.gguf",))) == ("a.gguf",)
    assert _references(Settings(client=True)) == ()
    assert _references(Settings(), is_client=True) == ()
    assert _references(Settings(model=("a.gguf",)), is_client=True) == ("a.gguf",)


def test_with_files_that_stand_by_the_bundled_model_is_not_served() -> None:
    settings = Settings(standby=("~/models",))
    assert _references(settings) == ()
    assert _references(msgspec.structs.replace(settings, model=("a.gguf",))) == ("a.gguf",)


def test_wish_needs_a_mesh(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), model=("nowhere",))
    assert not _has_mesh(settings, ())
    with pytest.raises(ModelError, match="there is no model 'nowhere'"):
        _run(settings, Journal())
    key = Ed25519PrivateKey.generate()
    ticket = read_token(make_invite(key, b"s" * 32, name="home"))
    assert _has_mesh(settings, (ticket,))
    state.belong(tmp_path, (), public_bytes(key), "home", 0.0)
    assert _has_mesh(settings, ())


def test_with_an_endpoint_the_bundled_model_is_not_served() -> None:
    settings = Settings(endpoint=("http://localhost:8080",))
    assert _references(settings) == ()
    assert _references(msgspec.structs.replace(settings, model=("a.gguf",))) == ("a.gguf",)


@pytest.mark.parametrize(
    "given", [{"model": ("a.gguf",)}, {"endpoint": ("http://h",)}, {"standby": ("a.gguf",)}]
)
def test_client_serves_nothing(given: dict[str, tuple[str, ...]]) -> None:
    (name,) = given
    with pytest.raises(SettingsError, match=f"leave out --{name}, or --client"):
        _references(msgspec.structs.replace(Settings(client=True), **given))


def test_client_holds_no_stages() -> None:
    with pytest.raises(SettingsError, match="leave out --split, or --client"):
        _references(Settings(client=True, split=True))


def test_client_without_a_mesh_is_told_that_nothing_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Settings] = []
    monkeypatch.setattr("trio.run", lambda _, settings, *__: started.append(settings))
    settings = Settings(client=True, data_dir=str(tmp_path))
    entries: list[Entry] = []
    assert run._run(settings, Journal(entries.append)) == 0
    assert [entry.event for entry in entries] == ["nothing_served"]
    with state.locked(tmp_path):
        state.belong(tmp_path, (), b"n" * 32, "home", 0.0)
    assert run._run(settings, Journal(entries.append)) == 0
    assert started == [settings, settings]
    assert len(entries) == 1


@pytest.mark.parametrize("name", ["draft", "mmproj"])
@pytest.mark.parametrize("models", [(), ("a.gguf", "b.gguf")])
def test_companion_belongs_to_one_model(name: str, models: tuple[str, ...]) -> None:
    companion = {name: "x.gguf"}
    with pytest.raises(SettingsError, match=f"--{name} belongs to one model"):
        _references(msgspec.structs.replace(Settings(model=models), **companion))
    one = msgspec.structs.replace(Settings(model=("a.gguf",)), **companion)
    assert _references(one) == ("a.gguf",)


def test_flags_reach_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHNODE_CONFIG", str(tmp_path / "none.toml"))
    words = ("--parallel 3 --kv-type q8_0 --gpu-layers 0 --deterministic --no-speculation "
             "--endpoint http://a --endpoint http://b:1/v1 --remote-media")  # fmt: skip
    found = load(run.command.make_context("run", words.split()).params, {})
    assert (found.parallel, found.kv_type, found.gpu_layers) == (3, "q8_0", 0)
    assert (found.deterministic, found.speculation, found.remote_media) == (True, False, True)
    assert found.endpoint == ("http://a", "http://b:1/v1")


@pytest.mark.parametrize("given", [{"split": True}, {"stages": "plan.json"}])
def test_a_model_is_served_in_one_way(given: dict[str, Any]) -> None:
    settings = msgspec.structs.replace(Settings(model=("a.gguf",), flash=True), **given)
    with pytest.raises(SettingsError, match=r"--flash and --\w+ are two ways to serve a model"):
        _references(settings)
    assert _references(Settings(model=("a.gguf",), flash=True)) == ("a.gguf",)
    _references(Settings(model=("a.gguf",), split=True, stages="plan.json"))


@pytest.mark.parametrize("given", [{"split": True}, {"stages": "plan.json"}, {"flash": True}])
def test_who_shares_experts_serves_in_no_other_way(given: dict[str, Any]) -> None:
    settings = msgspec.structs.replace(Settings(model=("a.gguf",), shards=True), **given)
    with pytest.raises(SettingsError, match=r"--shards and --\w+ are two ways to serve a model"):
        _references(settings)
    assert _references(Settings(model=("a.gguf",), shards=True)) == ("a.gguf",)
    with pytest.raises(SettingsError, match="leave out --shards"):
        _references(Settings(client=True, shards=True))


def test_floor_of_the_routing_is_a_share() -> None:
    words = ["--shards", "--min-mass", "0.9"]
    found = load(run.command.make_context("run", words).params, {})
    assert (found.shards, found.min_mass) == (True, 0.9)
    with pytest.raises(SettingsError, match="min-mass"):
        load(run.command.make_context("run", ["--min-mass", "1.1"]).params, {})


def test_who_only_asks_reads_no_experts() -> None:
    with pytest.raises(SettingsError, match="leave out --flash"):
        _references(Settings(client=True, flash=True))


def test_guessing_is_left_to_the_backend_where_nobody_says(tmp_path: Path) -> None:
    def found(*words: str) -> bool | None:
        return load(run.command.make_context("run", list(words)).params, {}).speculation

    assert (found(), found("--speculation"), found("--no-speculation")) == (None, True, False)


def test_every_setting_has_its_flag() -> None:
    flags = {parameter.name for parameter in run.command.params}
    assert flags == set(Settings.__struct_fields__)


def test_plan_of_stages_is_for_a_model_that_is_served(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(
        '{"model": "big", "manifest_sha256": "%s", "stages": '
        '[{"node": "bob", "layer_start": 0, "layer_end": 4}]}' % ("a" * 64)
    )
    settings = Settings(data_dir=str(tmp_path), stages=str(plan))
    with pytest.raises(SettingsError, match="is a plan for big, and this node has meshnode-demo"):
        _run(settings, Journal())
