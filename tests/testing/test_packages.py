"""The models that tests of packages write are what they claim to be."""

from pathlib import Path

import gguf

from p2p_mesh.core.manifest import read_manifest
from p2p_mesh.core.package import MANIFEST
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.packages import publish_elsewhere, split_model


def test_split_model_has_the_tensors_of_the_whole(tmp_path: Path) -> None:
    path = Path(write_model(tmp_path / "tiny.gguf").path)
    first = split_model(path, 3)
    assert first.name == "tiny-00001-of-00003.gguf"
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(parts) == 3
    names = [one.name for part in parts for one in gguf.GGUFReader(part).tensors]
    assert names == [one.name for one in gguf.GGUFReader(path).tensors]
    fields = gguf.GGUFReader(parts[1]).fields
    assert (fields["split.no"].contents(), fields["split.count"].contents()) == (1, 3)


def test_package_of_another_writer_can_be_read(tmp_path: Path) -> None:
    path = Path(write_model(tmp_path / "tiny.gguf").path)
    folder = publish_elsewhere(path, tmp_path / "package")
    found = read_manifest((folder / MANIFEST).read_bytes())
    assert (found.layer_count, found.activation_width) == (2, 0)
    assert "tokenizer.ggml.tokens" in gguf.GGUFReader(folder / found.layers[1].path).fields
