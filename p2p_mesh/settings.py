"""The settings of a node: defaults < settings file < MESHNODE_* < flags.

One name for each everywhere: `--max-memory`, `MESHNODE_MAX_MEMORY`, `max_memory = 8`.
A list in the environment is separated by commas.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from p2p_mesh.core.control import read_owner
from p2p_mesh.core.costs import Wire
from p2p_mesh.core.experts.assignment import MIN_MASS
from p2p_mesh.core.records import KvType
from p2p_mesh.errors import SettingsError

ENVIRONMENT = "MESHNODE_"
CONFIG = "MESHNODE_CONFIG"
ENDPOINT_KEY = "MESHNODE_ENDPOINT_KEY"
_KEYS = re.compile(rf"{ENDPOINT_KEY}(_[1-9]\d{{0,2}})?")

Port = Annotated[int, Meta(ge=0, le=65535)]


def _home(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "meshnode"


def default_data_dir() -> Path:
    return _home("XDG_DATA_HOME", ".local/share")


def cache_dir() -> Path:
    return _home("XDG_CACHE_HOME", ".cache")


def config_file() -> Path:
    return Path(os.environ.get(CONFIG) or _home("XDG_CONFIG_HOME", ".config") / "config.toml")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a user can choose; docs/settings.md explains each."""

    model: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    standby: tuple[str, ...] = ()
    """Model files, or folders of them, that are served when the mesh wants them."""
    client: bool = False
    port: Port = 9337
    console: Port = 3131
    p2p_port: Port = 0
    p2p_host: str = ""
    """An address to listen on for peers; empty: all interfaces."""
    data_dir: str = ""
    name: Annotated[str, Meta(max_length=64)] = ""
    ctx: Annotated[int, Meta(ge=16, le=2**24)] | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    max_memory: Annotated[float, Meta(gt=0, le=2**20)] | None = None
    """GB (10^9 bytes) that all models of this node may take together."""
    parallel: Annotated[int, Meta(ge=1, le=256)] | None = None
    """Requests that each model answers at a time."""
    kv_type: KvType = "f16"
    gpu_layers: Annotated[int, Meta(ge=0, le=2**16)] | None = None
    deterministic: bool = False
    speculation: bool | None = None
    """None: where it pays, as each backend knows."""
    draft: str = ""
    """A small model that guesses tokens for the one --model."""
    mmproj: str = ""
    """The projector of the one --model, for images or sounds."""
    split: bool = False
    """Models are cut into stages over several nodes, even where they fit whole."""
    flash: bool = False
    """The experts of models are read from the disk, even where they fit whole."""
    shards: bool = False
    """Models are served by expert shards, even where they fit whole."""
    min_mass: Annotated[float, Meta(ge=0, le=1)] = MIN_MASS
    """The least share of the routing that an expert shard of this node keeps."""
    stages: str = ""
    """A file that says which node holds which layers of one model."""
    max_rtt: Annotated[float, Meta(gt=0, le=10_000)] = 80.0
    """Milliseconds to another node and back, beyond which it gets no stage."""
    wire: Wire = "f32"
    """How activations travel between stages."""
    direct: bool = True
    """Stages of a model may reach one another past the nodes, at ports of their own."""
    artifacts: Literal["auto", "on", "off"] = "auto"
    """Parts of models are served to members, and fetched from them; auto: in a private mesh."""
    share: tuple[str, ...] = ()
    """Models whose parts are served to members, though they are not loaded."""
    max_disk: Annotated[float, Meta(gt=0, le=2**30)] | None = None
    """GB (10^9 bytes) that fetched parts and composed stages may take together."""
    fetch_allow: tuple[str, ...] = ()
    """Names, patterns or digests of models that may be fetched because they are wanted."""
    endpoint: tuple[str, ...] = ()
    """URLs of running OpenAI-compatible servers whose models this node offers."""
    remote_media: bool = False
    """Links to images in requests are fetched; never from private addresses."""
    listen: bool = False
    api_key: str = ""
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    accept_owner: tuple[str, ...] = ()
    """Public keys of owners, who may order this node about."""
    log_format: Literal["pretty", "json"] = "pretty"

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser() if self.data_dir else default_data_dir()

    @property
    def node_name(self) -> str:
        return self.name or socket.gethostname()

    @property
    def memory_limit(self) -> int | None:
        return None if self.max_memory is None else int(self.max_memory * 1e9)

    @property
    def disk_limit(self) -> int | None:
        return None if self.max_disk is None else int(self.max_disk * 1e9)

    @property
    def has_artifacts(self) -> bool:
        """Whether parts of models travel between members: every mesh of today is private."""
        return self.artifacts != "off"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server whose models this node offers, and the key that it wants."""

    url: str
    """As it was given, without a slash at its end."""
    key: str = field(default="", repr=False)
    variable: str = ENDPOINT_KEY
    """The environment variable that holds the key, or would."""


_FIELDS = {one.name: one for one in msgspec.structs.fields(Settings)}
_LISTS = {name for name, one in _FIELDS.items() if one.default == ()}


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    *,
    stdin: TextIO | None = None,
    open_secrets: bool = True,
) -> Settings:
    """The settings in force. `flags` holds what was given, None or () where it was not. Without
    `open_secrets`, tokens and keys stay as they were written: `@FILE`, or `-`.

    Raises SettingsError, naming where the wrong value stands.
    """
    environment = os.environ if environment is None else environment
    given = {
        **_from_file(config_file()),
        **_from_environment(environment),
        **{name: value for name, value in flags.items() if value not in (None, ())},
    }
    settings = _convert(given, "the setting")
    _check_address(settings.p2p_host)
    for owner in settings.accept_owner:
        read_owner(owner)
    if not settings.name.isprintable():
        raise SettingsError(f"the setting name: {settings.name!r} holds what cannot be shown")
    if not open_secrets:
        return settings
    endpoints(settings, environment)
    return _open_secrets(settings, stdin or sys.stdin)


def endpoints(
    settings: Settings, environment: Mapping[str, str] | None = None
) -> tuple[Endpoint, ...]:
    """The servers of --endpoint. The key of the nth one is MESHNODE_ENDPOINT_KEY_<n>; that of an
    only one may be MESHNODE_ENDPOINT_KEY. Raises SettingsError for a URL that is none, and for a
    key that is nobody's.
    """
    environment = os.environ if environment is None else environment
    names = [name for name in environment if _KEYS.fullmatch(name)]
    found = tuple(_endpoints(settings, environment))
    if unused := set(names) - {one.variable for one in found}:
        raise SettingsError(
            f"{min(unused)} is the key of no --endpoint: with several, that of the first is "
            f"{ENDPOINT_KEY}_1, that of the second {ENDPOINT_KEY}_2, and so on"
        )
    return found


def _endpoints(settings: Settings, environment: Mapping[str, str]) -> Iterator[Endpoint]:
    is_only = len(settings.endpoint) == 1
    for number, url in enumerate(settings.endpoint, 1):
        variable = f"{ENDPOINT_KEY}_{number}"
        if is_only and variable not in environment:
            variable = ENDPOINT_KEY
        key = environment.get(variable, "")
        key = _read_secret(Path(key[1:]).expanduser()) if key.startswith("@") else key.strip()
        if not key.isascii() or not key.isprintable():
            raise SettingsError(f"{variable} holds what no HTTP header can: line breaks, say")
        yield Endpoint(_endpoint_url(url), key, variable)


def _endpoint_url(url: str) -> str:
    """Raises SettingsError; says nothing of a password that the URL may hold."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not url.isprintable():
        raise SettingsError(
            "the setting endpoint: it takes the URL of a server, like http://localhost:8080/v1"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(
            f"the setting endpoint: leave out what is around {parts.hostname}{parts.path}; "
            f"a key or password belongs into {ENDPOINT_KEY} (docs/settings.md)"
        )
    return url.rstrip("/")


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from error
    _convert(values, f"the settings file {path}")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT) or variable == CONFIG or _KEYS.fullmatch(variable):
            continue
        name = variable.removeprefix(ENVIRONMENT).lower()
        if name not in _FIELDS:
            raise SettingsError(f"there is no setting {variable}; see `meshnode run --help`")
        found[name] = [part for part in text.split(",") if part] if name in _LISTS else text
        _convert({name: found[name]}, variable)
    return found


def _convert(values: Mapping[str, Any], where: str) -> Settings:
    try:
        return msgspec.convert(dict(values), Settings, strict=False)
    except msgspec.ValidationError as error:
        # "Expected `int` <= 65535 - at `$.port`"
        wanted, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").replace("_", "-")
        raise SettingsError(f"{where} {name}: {wanted}".replace(" :", ":")) from error


def _check_address(host: str) -> None:
    try:
        ipaddress.ip_address(host or "0.0.0.0")
    except ValueError as error:
        raise SettingsError(
            f"the setting p2p-host: {host!r} is no IP address of this machine, like 192.168.1.7"
        ) from error


def _open_secrets(settings: Settings, stdin: TextIO) -> Settings:
    """Tokens and keys may stand in a file or come on standard input, so that no process list
    shows them.
    """
    read = 0

    def opened(value: str) -> str:
        nonlocal read
        if value == "-":
            read += 1
            if read > 1:
                raise SettingsError("only one of --join and --api-key can come by standard input")
            return _some(stdin.readline(), "standard input")
        if value.startswith("@"):
            return _read_secret(Path(value[1:]).expanduser())
        return value

    joins = tuple(opened(token) for token in settings.join)
    return msgspec.structs.replace(settings, join=joins, api_key=opened(settings.api_key))


def _some(text: str, where: str) -> str:
    """An empty key would be no key, and leave open what was meant to be closed."""
    if not text.strip():
        raise SettingsError(f"{where} holds no token or key: it is empty")
    return text.strip()


def _read_secret(path: Path) -> str:
    try:
        return _some(path.read_text(), str(path))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
