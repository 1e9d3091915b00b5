"""Without a node, the plugins of this installation are listed."""

import json

import pytest

from p2p_mesh.cli.main import execute


def test_plugins_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plugins"]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split() == ["PLUGIN", "VERSION", "STATE", "REASON"]
    assert "llama_cpp" in [row.split()[0] for row in rows]


def test_plugins_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plugins", "--json"]) == 0
    (found,) = [one for one in json.loads(capsys.readouterr().out) if one["name"] == "llama_cpp"]
    assert (found["state"], found["reason"]) == ("active", "")
