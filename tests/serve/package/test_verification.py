"""What is wrong with a package is found, and said in words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_mesh.core.package import EMBEDDINGS, MANIFEST, METADATA, OUTPUT, PIECES, layer_path
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.verification import verify
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.packages import publish_elsewhere


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(one.path, one.reason) for one in verify(folder, Job()).problems]


def test_package_that_was_built_is_good(built: Path) -> None:
    seen: list[float] = []
    found = verify(built, Job(seen.append))
    assert (found.problems, found.has_pieces, seen[-1]) == ((), True, 1.0)


def test_package_of_another_writer_is_good(model: Path, tmp_path: Path) -> None:
    found = verify(publish_elsewhere(model, tmp_path / "elsewhere"), Job())
    assert (found.problems, found.has_pieces) == ((), False)


def flip(folder: Path) -> None:
    data = bytearray((folder / OUTPUT).read_bytes())
    data[-1] ^= 1
    (folder / OUTPUT).write_bytes(data)


def shorten(folder: Path) -> None:
    (folder / OUTPUT).write_bytes((folder / OUTPUT).read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / OUTPUT).unlink()


def swap(folder: Path) -> None:
    """Two artifacts of one size."""
    one, other = folder / layer_path(0), folder / layer_path(1)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def strange(folder: Path) -> None:
    (folder / PIECES).write_text((folder / PIECES).read_text().replace("4194304", "4194305"))


def rehash(folder: Path) -> None:
    value = json.loads((folder / PIECES).read_bytes())
    value["artifacts"][2]["sha256"] = ["0" * 64]
    (folder / PIECES).write_text(json.dumps(value))


@pytest.mark.parametrize(("spoil", "expected"), [
    (flip, [(OUTPUT, "its SHA-256 is not"), (PIECES, "its hashes of shared/output")]),
    (shorten, [(OUTPUT, "bytes; the manifest says")]),
    (remove, [(OUTPUT, "cannot be read: No such file")]),
    (swap, [(layer_path(0), "SHA-256"), (layer_path(1), "SHA-256"),
            (layer_path(0), "belongs elsewhere"), (layer_path(1), "belongs elsewhere")]),
    (strange, [(PIECES, "pieces of 4194305 bytes")]),
    (rehash, [(PIECES, "its hashes of shared/output.gguf are not those")]),
])  # fmt: skip
def test_what_is_wrong_is_named(
    built: Path, spoil: Callable[[Path], None], expected: list[tuple[str, str]]
) -> None:
    spoil(built)
    found = problems(built)
    for path, words in expected:
        assert any(one == path and words in reason for one, reason in found), (words, found)


def rewritten(folder: Path, artifact: str, other: Path) -> None:
    """Another file in an artifact's place, with a manifest that says so."""
    (folder / artifact).write_bytes((other / artifact).read_bytes())
    mine, theirs = (json.loads((one / MANIFEST).read_bytes()) for one in (folder, other))
    name = Path(artifact).stem
    mine["shared"][name] = theirs["shared"][name]
    (folder / MANIFEST).write_text(json.dumps(mine))


def test_artifact_of_another_architecture_is_found(tmp_path: Path) -> None:
    folders = []
    for kind in ("llama", "recurrent"):
        path = Path(write_model(tmp_path / f"{kind}.gguf", kind=kind).path)
        folders.append(publish_elsewhere(path, tmp_path / kind))
    rewritten(folders[0], EMBEDDINGS, folders[1])
    assert problems(folders[0]) == [
        ("", "shared/embeddings.gguf is of a 'mamba', and the package of a 'llama'")
    ]


def test_artifact_that_is_no_gguf_is_found(model: Path, tmp_path: Path) -> None:
    folder = publish_elsewhere(model, tmp_path / "elsewhere")
    (folder / METADATA).write_bytes(bytes((folder / METADATA).stat().st_size))
    assert (METADATA, "it is no GGUF file") in problems(folder)


def test_folder_without_a_manifest_is_refused(built: Path) -> None:
    (built / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match="built cannot be used: its schema_version"):
        verify(built, Job())
    (built / MANIFEST).unlink()
    with pytest.raises(ModelError, match=r"model-package\.json cannot be read"):
        verify(built, Job())
