"""flake.nix evaluates, over a stub of nixpkgs, and its script is a shell script."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

STUB = Path(__file__).parent / "flake.nix"


@pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="needs nix")
def test_flake_gives_a_package_an_app_and_a_shell(tmp_path: Path) -> None:
    folders = {name: str(tmp_path) for name in ("NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR")}
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", str(STUB)],
        capture_output=True, text=True, timeout=60, check=True, env={**os.environ, **folders},
    )  # fmt: skip
    for one in json.loads(done.stdout):
        assert one["program"].endswith("/bin/meshnode")
        assert one["tools"] == 4
        subprocess.run(["bash", "-n"], input=one["script"], text=True, check=True)
