"""The files that describe a package: what is written can be read, and what is wrong is refused."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.manifest import (
    is_safe,
    read_manifest,
    read_pieces,
    write_manifest,
    write_pieces,
)
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import MAX_MANIFEST, MAX_PIECES, PIECE, Manifest, Pieces
from p2p_mesh.errors import ModelError

SHA = "ab" * 32


def entry(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "tensor_count": 1, "tensor_bytes": 32, "artifact_bytes": 160,
            "sha256": SHA, **more}  # fmt: skip


def published(**more: Any) -> dict[str, Any]:
    """As the format's first writer has it, unknown fields and all."""
    return {
        "schema_version": 1,
        "model_id": "Qwen/Qwen3-8B-GGUF:Q4_K_M",
        "source_model": {
            "path": "/cache/q.gguf", "sha256": SHA, "repo": "Qwen/Qwen3-8B-GGUF",
            "revision": "main", "primary_file": "q.gguf", "distribution_id": "Q4_K_M",
            "canonical_ref": "Qwen/Qwen3-8B-GGUF:Q4_K_M",
            "files": [{"path": "q.gguf", "size_bytes": 123, "sha256": SHA}],
        },
        "format": "layer-package",
        "layer_count": 2,
        "activation_width": 64,
        "shared": {
            "metadata": entry("shared/metadata.gguf", tensor_count=0, tensor_bytes=0),
            "embeddings": entry("shared/embeddings.gguf"),
            "output": entry("shared/output.gguf"),
        },
        "generation": {"speculative_decoding": {"default": "native-mtp-n1"}},
        "layers": [entry(f"layers/layer-00{one}.gguf", layer_index=one) for one in (1, 0)],
        "projectors": [entry("projectors/mmproj.gguf", kind="mmproj")],
        "skippy_abi_version": "0.1.35",
        "created_at_unix_secs": 1790000000,
        "later": {"unknown": True},
        **more,
    }  # fmt: skip


def read(value: Any) -> Manifest:
    return read_manifest(json.dumps(value).encode())


def test_published_manifest_can_be_read() -> None:
    found = read(published())
    assert found.model_id == "Qwen/Qwen3-8B-GGUF:Q4_K_M"
    assert [one.path for one in found.layers] == ["layers/layer-000.gguf", "layers/layer-001.gguf"]
    assert [one.path for one in found.projectors] == ["projectors/mmproj.gguf"]
    assert found.source.files[0].size_bytes == 123
    assert (found.abi, found.created) == ("0.1.35", 1790000000)
    assert found.generation == {"speculative_decoding": {"default": "native-mtp-n1"}}


def test_old_manifest_says_no_width_and_has_capital_digits() -> None:
    old = published(shared={one: entry(f"shared/{one}.gguf", sha256=SHA.upper())
                            for one in ("metadata", "embeddings", "output")})  # fmt: skip
    del old["activation_width"], old["projectors"], old["generation"]
    found = read(old)
    assert (found.activation_width, found.projectors, found.generation) == (0, (), None)
    assert found.metadata.sha256 == SHA


def test_written_manifest_is_the_same_again() -> None:
    for value in (published(), published(projectors=[], generation=None)):
        found = read(value)
        data = write_manifest(found)
        assert read_manifest(data) == found
        assert write_manifest(read_manifest(data)) == data
    assert set(json.loads(write_manifest(read(published())))) == {*published()} - {"later"}


def change(**more: Any) -> dict[str, Any]:
    return published(**more)


def layer(**more: Any) -> dict[str, Any]:
    first = entry("layers/a.gguf", layer_index=0)
    return published(layers=[first, {**entry("layers/b.gguf", layer_index=1), **more}])


@pytest.mark.parametrize(("value", "reason"), [
    ([], "cannot be read"),
    (change(schema_version=2), "schema_version is 2; 1 can be read"),
    ({}, "schema_version is None"),
    (change(format="zip"), "format is 'zip'"),
    (change(model_id=""), "model_id"),
    (change(layer_count=0), "layer_count"),
    (change(layer_count=2**40), "layer_count"),
    (change(layer_count=3), "3 layers and does not name layer 2"),
    (change(layer_count=1), "1 layers and names layer 1"),
    (change(activation_width=-1), "activation_width"),
    (layer(layer_index=0), "names layer 0 twice"),
    (layer(path="layers/a.gguf"), "names 'layers/a.gguf' twice"),
    (layer(path="layers/A.gguf"), "names 'layers/A.gguf' twice"),
    (layer(path="../b.gguf"), "no safe relative path"),
    (layer(sha256="x" * 64), "SHA-256 of 'layers/b.gguf'"),
    (layer(sha256="0" * 65), "sha256"),
    (layer(artifact_bytes=0), "artifact_bytes"),
    (layer(artifact_bytes=2**60), "artifact_bytes"),
    (layer(tensor_bytes=0), "1 tensors of 0 bytes"),
    (layer(tensor_count=0), "0 tensors of 32 bytes"),
    (layer(tensor_bytes=161), "160 bytes, and 161 in tensors"),
    (change(shared={"metadata": entry("shared/m.gguf")}), "embeddings"),
    (change(projectors=[entry("p.gguf", kind="lora")]), "unknown kind 'lora'"),
    (change(projectors=[entry(f"{one}.gguf", kind="mmproj") for one in range(17)]), "projectors"),
])  # fmt: skip
def test_bad_manifest_is_refused_in_words(value: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read(value)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b"{" * 9, b'"\\ud800"',
                                  b" " * (MAX_MANIFEST + 1)])  # fmt: skip
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_manifest(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_an_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_manifest(data)


@pytest.mark.parametrize("path", [
    "shared/metadata.gguf", "layers/layer-00000.gguf", "projectors/mmproj-F16 (1).gguf", "a",
])  # fmt: skip
def test_safe_paths(path: str) -> None:
    assert is_safe(path)


@pytest.mark.parametrize("path", [
    "", "/etc/passwd", "../a", "a/../b", "a/./b", "a//b", "a/", ".hidden", "a/.incoming/b", "C:\\a",
    "a\\b", "a:b", "nul\0", "a\nb", " a", "a /b", "a/" * 20 + "b", "model-package.json",
    "Model-Package.JSON", "model-package.pieces.json", "a*", ".origin.json", ".lock",
])  # fmt: skip
def test_unsafe_paths(path: str) -> None:
    assert not is_safe(path)


def pieces_of(found: Manifest) -> tuple[str, Pieces]:
    digest = Digest(hashlib.sha256(write_manifest(found)).hexdigest())
    return digest, Pieces(digest, {one.path: (SHA,) for one in found.artifacts})


def test_written_pieces_are_the_same_again() -> None:
    manifest = read(published())
    digest, pieces = pieces_of(manifest)
    data = write_pieces(pieces)
    assert read_pieces(data, manifest, digest) == pieces
    assert write_pieces(read_pieces(data, manifest, digest)) == data


def more(value: dict[str, Any]) -> None:
    value["artifacts"][0]["sha256"].append(SHA)


def twice(value: dict[str, Any]) -> None:
    value["artifacts"].append(value["artifacts"][0])


def fewer(value: dict[str, Any]) -> None:
    value["artifacts"].pop()


def strange(value: dict[str, Any]) -> None:
    value["artifacts"][0]["path"] = "elsewhere.gguf"


@pytest.mark.parametrize("spoil", [more, twice, fewer, strange])
def test_pieces_are_those_of_the_manifest(spoil: Callable[[dict[str, Any]], None]) -> None:
    manifest = read(published())
    digest, pieces = pieces_of(manifest)
    value = json.loads(write_pieces(pieces))
    spoil(value)
    with pytest.raises(ModelError, match="each piece of each artifact once"):
        read_pieces(json.dumps(value).encode(), manifest, digest)


@pytest.mark.parametrize(("change", "reason"), [
    ({"schema_version": 2}, "version 2"), ({"piece_bytes": 1}, f"of 1 bytes; 1 and {PIECE}"),
    ({"manifest_sha256": "0" * 64}, "another manifest"), ({"artifacts": 1}, "cannot be read"),
])  # fmt: skip
def test_bad_pieces_are_refused_in_words(change: dict[str, Any], reason: str) -> None:
    manifest = read(published())
    digest, pieces = pieces_of(manifest)
    value = {**json.loads(write_pieces(pieces)), **change}
    with pytest.raises(ModelError, match=reason):
        read_pieces(json.dumps(value).encode(), manifest, digest)


def test_endless_list_of_pieces_is_refused() -> None:
    with pytest.raises(ModelError, match="is the limit"):
        read_pieces(b" " * (MAX_PIECES + 1), read(published()), SHA)


def test_manifest_travels_as_a_record_too() -> None:
    found = read(published())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Manifest) == found
