"""`meshnode run`, up to the point where a node would start; tests/real starts it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2p_mesh.cli import run
from p2p_mesh.cli.run import _first, _references
from p2p_mesh.errors import SettingsError
from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.settings import Settings, load


def test_without_a_model_the_bundled_one_is_served() -> None:
    assert _references(Settings()) == (DEFAULT_MODEL,)
    assert _references(Settings(model=("a.gguf",))) == ("a.gguf",)
    assert _references(Settings(client=True)) == ()
    assert _references(Settings(), is_client=True) == ()
    assert _references(Settings(model=("a.gguf",)), is_client=True) == ("a.gguf",)


def test_with_an_endpoint_the_bundled_model_is_not_served() -> None:
    settings = Settings(endpoint=("http://localhost:8080",))
    assert _references(settings) == ()
    assert _references(msgspec.structs.replace(settings, model=("a.gguf",))) == ("a.gguf",)


@pytest.mark.parametrize("given", [{"model": ("a.gguf",)}, {"endpoint": ("http://h",)}])
def test_client_serves_nothing(given: dict[str, tuple[str, ...]]) -> None:
    (name,) = given
    with pytest.raises(SettingsError, match=f"leave out --{name}, or --client"):
        _references(msgspec.structs.replace(Settings(client=True), **given))


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


def test_every_setting_has_its_flag() -> None:
    flags = {parameter.name for parameter in run.command.params}
    assert flags == set(Settings.__struct_fields__)


def test_error_inside_groups_is_found() -> None:
    error = SettingsError("port 1 is in use")
    groups: Any = BaseExceptionGroup("", [ExceptionGroup("", [error])])
    assert _first(groups) is error
