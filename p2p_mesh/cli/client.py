"""How the commands talk to the running node: by node.json and its management port."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import psutil

from p2p_mesh import settings, state
from p2p_mesh.errors import (
    LocalError,
    MeshError,
    ModelError,
    SettingsError,
    Unavailable,
    from_code,
)

SECONDS = 10.0

F = TypeVar("F", bound=Callable[..., Any])


def data_dir_option(function: F) -> F:
    return click.option(
        "--data-dir", metavar="DIR", type=click.Path(file_okay=False),
        help="The data directory of the node that is meant.",
    )(function)  # fmt: skip


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="As JSON.")(function)


def data_path(data_dir: str | None) -> Path:
    """The data directory that a command means."""
    return settings.load({"data_dir": data_dir}, open_secrets=False).data_path


class Client:
    """The management port of the node that runs on a data directory."""

    def __init__(self, node: state.NodeFile) -> None:
        self._node = node

    @classmethod
    def find(cls, data_dir: str | None) -> Client:
        """Raises Unavailable where no node runs there."""
        directory = data_path(data_dir)
        node = state.running(directory)
        if node is None or not psutil.pid_exists(node.pid):
            raise Unavailable(_nobody(directory))
        return cls(node)

    def get(self, path: str) -> Any:
        return self._call(path, None)

    def post(self, path: str, body: Mapping[str, Any], seconds: float = SECONDS) -> Any:
        return self._call(path, json.dumps(body).encode(), seconds)

    def _call(self, path: str, body: bytes | None, seconds: float = SECONDS) -> Any:
        request = urllib.request.Request(
            self._node.console_url + path,
            data=body,
            headers={
                "Authorization": f"Bearer {self._node.token}",
                "Content-Type": "application/json",
            },
        )
        # No proxy: the node is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=seconds) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"the node (process {self._node.pid}) does not answer on "
                f"{self._node.console_url}: {error}"
            ) from error


def _nobody(directory: Path) -> str:
    return f"no node runs on {directory}; start one with `meshnode run`, or name its --data-dir"


def _refusal(error: urllib.error.HTTPError) -> MeshError:
    """What the node says; a model or a setting is something to mend in the call."""
    try:
        said = json.load(error)["error"]
        message, code = str(said["message"]), said.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return LocalError(f"the node answered {error.code}")
    if code in (ModelError.code, SettingsError.code):
        return from_code(code, message)
    return LocalError(message)
