from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from p2p_mesh.testing.projectors import Kind, write_grid_model, write_projector


def test_the_same_seed_gives_the_same_projector(tmp_path: Path) -> None:
    first, again, other = (
        write_projector(tmp_path / name, seed=seed).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("kind", "name", "sense"),
    [("vision", "mlp", "vision"), ("whole", "gemma3", "vision"),
     ("grid", "qwen2vl_merger", "vision"), ("audio", "ultravox", "audio")],
)  # fmt: skip
def test_a_projector_says_what_it_is(tmp_path: Path, kind: Kind, name: str, sense: str) -> None:
    fields = gguf.GGUFReader(write_projector(tmp_path / "mmproj-tiny.gguf", kind=kind)).fields
    assert fields["general.architecture"].contents() == "clip"
    assert fields["general.type"].contents() == "mmproj"
    assert fields["clip.projector_type"].contents() == name
    assert fields[f"clip.has_{sense}_encoder"].contents() is True


def test_a_projector_ends_in_the_width_of_the_model(tmp_path: Path) -> None:
    path = write_projector(tmp_path / "wide.gguf", width=128)
    shapes = {one.name: list(one.shape) for one in gguf.GGUFReader(path).tensors}
    assert (shapes["mm.2.weight"], shapes["mm.2.bias"]) == ([128, 128], [128])


def test_a_grid_model_is_a_model_with_positions_in_sections(tmp_path: Path) -> None:
    model = write_grid_model(tmp_path / "grid.gguf")
    reader = gguf.GGUFReader(tmp_path / "grid.gguf")
    assert reader.fields["general.architecture"].contents() == model.architecture == "qwen2vl"
    assert reader.fields["qwen2vl.rope.dimension_sections"].contents() == [4, 2, 2, 0]
    assert reader.fields["qwen2vl.block_count"].contents() == 2
    assert model.size_bytes == (tmp_path / "grid.gguf").stat().st_size
    assert not any(name.startswith("llama.") for name in reader.fields)
