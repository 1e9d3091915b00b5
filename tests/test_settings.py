"""Defaults < file < environment < flags, and errors that say where."""

import io
from pathlib import Path

import pytest

from p2p_mesh import settings as module
from p2p_mesh.errors import SettingsError
from p2p_mesh.settings import Endpoint, Settings, endpoints, load


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("MESHNODE_CONFIG", str(path))
    return path


def test_defaults() -> None:
    settings = load({}, {})
    assert (settings.port, settings.console, settings.p2p_port) == (9337, 3131, 0)
    assert settings.memory_limit is None
    assert settings.node_name


def test_each_source_is_stronger_than_the_last(config: Path) -> None:
    config.write_text('port = 1\nconsole = 2\nname = "file"\n')
    environment = {"MESHNODE_CONSOLE": "3", "MESHNODE_NAME": "environment", "OTHER": "x"}
    settings = load({"name": "flag", "ctx": None, "model": ()}, environment)
    assert (settings.port, settings.console, settings.name) == (1, 3, "flag")


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    assert load({}, {"MESHNODE_MODEL": "a.gguf,b.gguf"}).model == ("a.gguf", "b.gguf")


def test_flags_come_as_text() -> None:
    settings = load({"port": "8080", "max_memory": "1.5", "client": True}, {})
    assert (settings.port, settings.memory_limit, settings.client) == (8080, 1_500_000_000, True)


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"port": "70000"}, {}, "the setting port: .*65535"),
        ({"port": "x"}, {}, "the setting port"),
        ({"log_format": "xml"}, {}, "the setting log-format"),
        ({"max_memory": "-1"}, {}, "the setting max-memory"),
        ({"ctx": "1"}, {}, "the setting ctx"),
        ({"max_rtt": "0"}, {}, "the setting max-rtt"),
        ({"wire": "f64"}, {}, "the setting wire"),
        ({"name": "caf\udce9"}, {}, "the setting name"),
        ({"p2p_host": "localhost"}, {}, "the setting p2p-host: 'localhost' is no IP address"),
        ({}, {"MESHNODE_PORT": "x"}, "MESHNODE_PORT"),
        ({}, {"MESHNODE_PROT": "1"}, "no setting MESHNODE_PROT"),
    ],
)
def test_wrong_value_is_named(
    flags: dict[str, str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load(flags, environment)


@pytest.mark.parametrize("text", ["port = [", "prot = 1", "port = 'x'"])
def test_wrong_file_is_named(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(SettingsError, match="settings file"):
        load({}, {})


def test_secrets_come_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mn1_abc\n")
    settings = load(
        {"join": (f"@{tmp_path / 'token'}", "mn1_x"), "api_key": "-"},
        {},
        stdin=io.StringIO("key\n"),
    )
    assert settings.join == ("mn1_abc", "mn1_x")
    assert settings.api_key == "key"


def test_secrets_that_are_not_needed_stay_closed() -> None:
    settings = load({"join": ("@/nowhere/token",)}, {}, open_secrets=False)
    assert settings.join == ("@/nowhere/token",)


def test_standard_input_gives_one_secret() -> None:
    with pytest.raises(SettingsError, match="only one"):
        load({"join": ("-",), "api_key": "-"}, {}, stdin=io.StringIO("a\nb\n"))


def test_empty_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SettingsError, match="it is empty"):
        load({"api_key": f"@{tmp_path / 'empty'}"}, {})
    with pytest.raises(SettingsError, match="standard input holds no token or key"):
        load({"api_key": "-"}, {}, stdin=io.StringIO(""))


def test_missing_secret_file_is_named() -> None:
    with pytest.raises(SettingsError, match="/nowhere/token"):
        load({"join": ("@/nowhere/token",)}, {})


KEYS = {"MESHNODE_ENDPOINT_KEY_1": "one", "MESHNODE_ENDPOINT_KEY_2": "two"}


def test_only_endpoint_has_the_plain_key(tmp_path: Path) -> None:
    only = Settings(endpoint=("http://a/v1/",))
    assert endpoints(only, {}) == (Endpoint("http://a/v1"),)
    assert endpoints(only, {"MESHNODE_ENDPOINT_KEY": "k"}) == (Endpoint("http://a/v1", "k"),)
    (tmp_path / "key").write_text("in a file\n")
    (found,) = endpoints(only, {"MESHNODE_ENDPOINT_KEY_1": f"@{tmp_path / 'key'}"})
    assert (found.key, found.variable) == ("in a file", "MESHNODE_ENDPOINT_KEY_1")


def test_each_of_several_endpoints_has_its_own_key() -> None:
    several = Settings(endpoint=("http://a", "http://b"))
    assert [one.key for one in endpoints(several, KEYS)] == ["one", "two"]
    found = endpoints(several, {"MESHNODE_ENDPOINT_KEY_2": "two"})
    assert [(one.key, one.variable) for one in found] == [
        ("", "MESHNODE_ENDPOINT_KEY_1"), ("two", "MESHNODE_ENDPOINT_KEY_2"),
    ]  # fmt: skip


def test_key_is_never_shown() -> None:
    assert "secret" not in repr(endpoints(Settings(endpoint=("http://a",)), {
        "MESHNODE_ENDPOINT_KEY": "secret"}))  # fmt: skip


@pytest.mark.parametrize(
    ("urls", "environment", "message"),
    [
        (("http://a", "http://b"), {"MESHNODE_ENDPOINT_KEY": "k"}, "the key of no --endpoint"),
        (("http://a",), KEYS, "MESHNODE_ENDPOINT_KEY_2 is the key of no --endpoint"),
        ((), {"MESHNODE_ENDPOINT_KEY": "k"}, "the key of no --endpoint"),
        (("http://a",), {"MESHNODE_ENDPOINT_KEY": "a\nb"}, "MESHNODE_ENDPOINT_KEY holds what no"),
        (("http://a",), {"MESHNODE_ENDPOINT_KEY": "@/nowhere/key"}, "/nowhere/key"),
        (("localhost:8080",), {}, "the URL of a server, like http"),
        (("ftp://a",), {}, "the URL of a server"),
        (("http://",), {}, "the URL of a server"),
        (("http://a:99999",), {}, "the URL of a server"),
        (("http://[a",), {}, "the URL of a server"),
        (("http://a/?key=x",), {}, "leave out what is around a/"),
        (("http://me:pass@a/v1",), {}, "leave out what is around a/v1"),
    ],
)
def test_wrong_endpoint_is_named(
    urls: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load({"endpoint": urls}, environment)
    assert "pass@" not in str(caught.value)


def test_keys_of_endpoints_are_no_settings() -> None:
    assert load({"endpoint": ("http://a",)}, {"MESHNODE_ENDPOINT_KEY": "k"}).endpoint == (
        "http://a",
    )
    with pytest.raises(SettingsError, match="no setting MESHNODE_ENDPOINT_KEY_0"):
        load({}, {"MESHNODE_ENDPOINT_KEY_0": "k"})


def test_owner_is_a_public_key() -> None:
    owner = "mo1_" + "A" * 43
    found = load({}, {"MESHNODE_ACCEPT_OWNER": f"{owner},{owner}"})
    assert found.accept_owner == (owner, owner)
    with pytest.raises(SettingsError, match="no public key of an owner"):
        load({"accept_owner": ("mo1_bob",)}, {})


def test_folders_follow_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    monkeypatch.delenv("MESHNODE_CONFIG")
    assert load({}, {}).data_path == Path("/data/meshnode")
    assert module.cache_dir() == Path("/cache/meshnode")
    assert module.config_file() == Path("/config/meshnode/config.toml")
