"""The command itself: help, version, and errors that are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_mesh import __version__
from p2p_mesh.cli.main import execute

COMMANDS = ["run", "status", "invite", "invites", "revoke", "load", "unload", "control", "owner",
            "mesh", "rotate-key", "plugins", "completion"]  # fmt: skip


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"meshnode {__version__}\n"


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(arguments) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("group", ["package", "mesh", "owner"])
def test_group_alone_shows_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([group]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Usage: meshnode {group}")
    assert "\nCommands:\n" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: meshnode {command}" in shown
    assert "Examples:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["run", "--fly"], "No such option"),
        (["run", "--port"], "requires an argument"),
        (["run", "--port", "99999"], "port"),
        (["run", "--port", "x"], "port"),
        (["run", "--log-format", "xml"], "log-format"),
        (["run", "--join", "nonsense"], "copy the whole token"),
        (["run", "--join", "@/nowhere"], "/nowhere cannot be read"),
        (["run", "--model", "/nowhere.gguf"], "there is no model '/nowhere.gguf'"),
        (["run", "--client", "--model", "x"], "--client serves nothing"),
        (["invite", "--role", "king"], "king"),
        (["invite", "--until", "soon"], "--until 'soon' is no time"),
        (["invite", "--join-by", "soon"], "--join-by 'soon' is no time"),
        (["invite", "--uses", "0"], "--uses"),
        (["run", "--accept-owner", "bob"], "no public key of an owner"),
        (["control", "box", "explode"], "explode"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("command", [["status"], ["invite"], ["status", "--json"]])
def test_without_a_node_it_says_how_to_start_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(command) == 1
    assert "start one with `meshnode run`" in capsys.readouterr().err


def test_bad_model_files_end_with_2_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.gguf"
    for data in (b"", b"not a model at all, but text", b"GGUF\x03\0\0\0"):
        path.write_bytes(data)
        data_dir = tmp_path / "data"
        assert execute(["run", "--model", str(path), "--data-dir", str(data_dir)]) == 2
        assert "bad.gguf cannot be used" in capsys.readouterr().err
        assert not data_dir.exists()


@pytest.mark.parametrize("command", ["--version", "plugins", "run --help"])
def test_output_that_cannot_be_written_is_no_traceback(command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "p2p_mesh", *command.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1, "Error: the output cannot be written: No space left on device\n",
    )  # fmt: skip


def test_reader_that_leaves_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "p2p_mesh", "plugins"],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
