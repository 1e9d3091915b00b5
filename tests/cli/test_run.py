"""`meshnode run`, up to the point where a node would start; tests/real starts it."""

from typing import Any

from p2p_mesh.cli import run
from p2p_mesh.cli.run import _first, _references
from p2p_mesh.errors import SettingsError
from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.settings import Settings


def test_without_a_model_the_bundled_one_is_served() -> None:
    assert _references(Settings()) == (DEFAULT_MODEL,)
    assert _references(Settings(model=("a.gguf",))) == ("a.gguf",)
    assert _references(Settings(client=True)) == ()
    assert _references(Settings(), is_client=True) == ()
    assert _references(Settings(model=("a.gguf",)), is_client=True) == ("a.gguf",)


def test_every_setting_has_its_flag() -> None:
    flags = {parameter.name for parameter in run.command.params}
    assert flags == set(Settings.__struct_fields__)


def test_error_inside_groups_is_found() -> None:
    error = SettingsError("port 1 is in use")
    groups: Any = BaseExceptionGroup("", [ExceptionGroup("", [error])])
    assert _first(groups) is error
