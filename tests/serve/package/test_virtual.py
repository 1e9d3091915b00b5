"""A GGUF file as a package: artifacts are whole GGUF files with the very bytes of its tensors."""

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.manifest import read_manifest, read_pieces
from p2p_mesh.core.package import EMBEDDINGS, METADATA, OUTPUT, SourceModel, home, layer_path
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.source import read_source
from p2p_mesh.serve.package.virtual import Layout, describe, lay_out, write
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.packages import split_model
from p2p_mesh.testing.projectors import write_projector

SOURCE = SourceModel(path="m", sha256="0" * 64)


def laid_out(path: Path, *projectors: Path) -> Layout:
    return lay_out(read_source(path), projectors)


def header_of(data: bytes) -> Header:
    return read_header(data, len(data))


def artifacts(layout: Layout) -> dict[str, bytes]:
    return {path: blob.read(0, blob.size) for path, blob in layout.blobs.items()}


def test_each_tensor_is_in_one_artifact_with_its_bytes(model: Path, tmp_path: Path) -> None:
    found = {}
    for path, data in artifacts(laid_out(model)).items():
        (tmp_path / "artifact").write_bytes(data)
        for tensor in gguf.GGUFReader(tmp_path / "artifact").tensors:
            assert tensor.name not in found
            found[tensor.name] = (path, bytes(np.array(tensor.data)), tensor.tensor_type)
    whole = gguf.GGUFReader(model).tensors
    assert set(found) == {tensor.name for tensor in whole}
    paths = {"embeddings": EMBEDDINGS, "output": OUTPUT, "metadata": METADATA}
    for tensor in whole:
        place = home(tensor.name)
        path = layer_path(place) if isinstance(place, int) else paths[place]
        assert found[tensor.name] == (path, bytes(np.array(tensor.data)), tensor.tensor_type)


def test_metadata_have_all_keys_as_they_were(model: Path, tmp_path: Path) -> None:
    (tmp_path / "metadata").write_bytes(artifacts(laid_out(model))[METADATA])
    original, copy = gguf.GGUFReader(model).fields, gguf.GGUFReader(tmp_path / "metadata").fields

    def contents(fields: dict[str, gguf.ReaderField]) -> dict[str, object]:
        return {name: field.contents() for name, field in fields.items()
                if not name.startswith("GGUF.")}  # fmt: skip

    assert contents(copy) == contents(original)


def test_other_artifacts_have_the_architecture_alone(model: Path) -> None:
    found = header_of(artifacts(laid_out(model))[layer_path(1)])
    assert found.metadata == {"general.architecture": "llama"}


def test_split_model_gives_the_same_artifacts(model: Path) -> None:
    several = split_model(model)
    assert artifacts(laid_out(several)) == artifacts(laid_out(model))
    keys = header_of(artifacts(laid_out(several))[METADATA]).metadata
    assert not [one for one in keys if one.startswith("split.")]


def test_description_is_of_the_content_and_not_of_the_name(model: Path, tmp_path: Path) -> None:
    other = model.rename(tmp_path / "other name.gguf")
    layout = laid_out(other)
    found = Job().hash(layout.blobs)
    manifest, pieces = write(layout, found, SOURCE)
    read = read_manifest(manifest)
    assert read == describe(layout, found, SOURCE)
    assert (read.model_id, read.layer_count, read.activation_width) == ("random", 2, 64)
    assert read.metadata.tensor_count == 0
    digest = hashlib.sha256(manifest).hexdigest()
    assert list(read_pieces(pieces, read, digest).hashes) == [*layout.blobs]


def test_projector_goes_along_as_it_is(model: Path, tmp_path: Path) -> None:
    projector = write_projector(tmp_path / "mmproj.gguf")
    layout = laid_out(model, projector)
    assert artifacts(layout)["projectors/mmproj.gguf"] == projector.read_bytes()
    read = describe(layout, Job().hash(layout.blobs), SOURCE)
    assert [one.path for one in read.projectors] == ["projectors/mmproj.gguf"]
    with pytest.raises(ModelError, match=r"tiny\.gguf is no projector but a model \(llama\)"):
        laid_out(model, model)
    with pytest.raises(ModelError, match="cannot be named so in a package"):
        laid_out(model, projector, projector)
    with pytest.raises(ModelError, match="cannot be named so in a package"):
        laid_out(model, projector.rename(tmp_path / "a:b.gguf"))


def crafted(path: Path, **keys: int) -> Path:
    """A model of one small layer, with keys of one's own."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in keys.items():
        writer.add_uint32(name.replace("__", "."), value)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_layer_without_tensors_has_an_artifact_too(tmp_path: Path) -> None:
    layout = laid_out(crafted(tmp_path / "m.gguf", llama__block_count=3))
    assert layout.layer_count == 3
    assert layout.tensors[layer_path(2)] == (0, 0)
    assert header_of(artifacts(layout)[layer_path(2)]).tensors == ()


def test_wider_alignment_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for name in ("blk.0.a", "blk.0.b"):
        writer.add_tensor(name, np.ones(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = header_of(artifacts(laid_out(path))[layer_path(0)])
    assert [one.offset % 256 for one in found.tensors] == [0, 0]


@pytest.mark.parametrize(("keys", "reason"), [
    ({"llama__block_count": 5000}, "5000 layers; 4096 is the limit"),
    ({"general__alignment": 1 << 20}, "alignment of 1048576"),
    ({"general__alignment": 12}, "alignment of 12"),
])  # fmt: skip
def test_absurd_header_is_refused(tmp_path: Path, keys: dict[str, int], reason: str) -> None:
    path = crafted(tmp_path / "m.gguf", **keys)
    if keys.get("general__alignment"):
        path.write_bytes(path.read_bytes() + bytes(1 << 21))
    with pytest.raises(ModelError, match=reason):
        laid_out(path)


def test_file_without_layers_makes_no_package(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no layers"):
        laid_out(write_projector(tmp_path / "mmproj.gguf"))


def test_model_without_a_name_has_its_architectures(tmp_path: Path) -> None:
    assert laid_out(crafted(tmp_path / "m.gguf")).model_id == "llama"


def test_overlapping_tensors_are_refused(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    first, second = read_source(model).header.tensors[:2]
    name = second.name.encode()
    at = data.index(name) + len(name) + 4 + 8 * len(second.shape) + 4
    (tmp_path / "bad.gguf").write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    with pytest.raises(ModelError, match=f"{first.name}.*{second.name}.*overlap"):
        laid_out(tmp_path / "bad.gguf")


def test_every_kind_of_model_makes_a_package(tmp_path: Path) -> None:
    for kind in ("llama", "sliding", "recurrent", "hybrid"):
        path = Path(write_model(tmp_path / f"{kind}.gguf", kind=kind).path)
        assert laid_out(path).layer_count == 2
