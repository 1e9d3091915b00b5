"""What a package holds, where each tensor belongs, and what its files' headers may say."""

from dataclasses import replace as changed
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2p_mesh.core.families.recipe import Recipe, Renamed
from p2p_mesh.core.gguf import Header, Tensor
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import (
    EMBEDDINGS,
    METADATA,
    OUTPUT,
    PIECE,
    Artifact,
    Manifest,
    PackageRef,
    artifacts_for,
    check_artifact,
    check_ranges,
    check_whole,
    home,
    layer_path,
    piece_count,
    piece_range,
    pieces_of,
)
from p2p_mesh.errors import ModelError

SHA = Digest("0" * 64)


def artifact(path: str, tensors: int = 1, size: int = 32) -> Artifact:
    return Artifact(path=path, tensor_count=tensors, tensor_bytes=size * tensors,
                    artifact_bytes=1000, sha256=SHA)  # fmt: skip


def manifest(layers: int = 3) -> Manifest:
    return Manifest(
        model_id="m", layer_count=layers, activation_width=8,
        metadata=artifact(METADATA, 0), embeddings=artifact(EMBEDDINGS), output=artifact(OUTPUT),
        layers=tuple(artifact(layer_path(number)) for number in range(layers)),
        projectors=(artifact("projectors/p.gguf"),),
    )  # fmt: skip


def tensor(name: str, offset: int = 0, size: int = 32) -> Tensor:
    return Tensor(name, (size // 4,), 0, offset, size)


def header(*tensors: Tensor, architecture: str = "llama") -> Header:
    return Header({"general.architecture": architecture}, tensors)


def headers() -> dict[str, Header]:
    found = {METADATA: header(), EMBEDDINGS: header(tensor("token_embd.weight")),
             OUTPUT: header(tensor("output.weight"))}  # fmt: skip
    layers = {layer_path(one): header(tensor(f"blk.{one}.attn_q.weight")) for one in range(3)}
    return found | layers


def recipe(start: int, end: int, *shared: str, renamed: tuple[Renamed, ...] = ()) -> Recipe:
    return Recipe(start, end, 3, tuple(range(start, end)), "tokens", shared=shared, renamed=renamed)


def test_artifacts_are_known_by_their_paths() -> None:
    found = manifest()
    assert [one.path for one in found.artifacts] == [
        METADATA, EMBEDDINGS, OUTPUT, *map(layer_path, range(3)), "projectors/p.gguf"
    ]  # fmt: skip
    assert found.artifact(layer_path(1)) == found.layers[1]
    assert found.total_bytes == 6000
    with pytest.raises(ModelError, match="no artifact 'layers/none'"):
        found.artifact("layers/none")


@pytest.mark.parametrize(("name", "place"), [
    ("blk.0.attn_q.weight", 0), ("blk.31.ffn_down.weight", 31), ("token_embd.weight", "embeddings"),
    ("per_layer_token_embd.weight", "embeddings"), ("output.weight", "output"),
    ("output_norm.bias", "output"), ("rope_freqs.weight", "metadata"), ("blk.x.y", "metadata"),
    ("blk.01.y", "metadata"), ("token_embd_norm.weight", "metadata"),
])  # fmt: skip
def test_tensor_belongs_by_its_name(name: str, place: str | int) -> None:
    assert home(name) == place


def test_stage_takes_what_its_file_is_made_of() -> None:
    def needs(recipe: Recipe) -> tuple[str, ...]:
        return artifacts_for(manifest(), recipe)

    assert needs(recipe(0, 1, "token_embd.weight")) == (METADATA, EMBEDDINGS, layer_path(0))
    assert needs(recipe(1, 2)) == (METADATA, layer_path(1))
    last = recipe(2, 3, "*")
    assert needs(last) == (METADATA, OUTPUT, layer_path(2))
    assert needs(changed(last, needs_tokens=True)) == (METADATA, EMBEDDINGS, OUTPUT, layer_path(2))
    assert len(needs(recipe(0, 3, "*"))) == 6


def test_borrowed_tensors_are_taken_from_where_they_are() -> None:
    tied = Renamed("output.weight", "token_embd.weight")
    borrowed = Renamed("blk.0.attn_v.weight", "blk.0.attn_v.weight", "zeros")
    made = Renamed("output_norm.weight", "", "zeros", shape=(8,))
    found = artifacts_for(manifest(), recipe(1, 2, renamed=(tied, borrowed, made)))
    assert found == (METADATA, EMBEDDINGS, layer_path(0), layer_path(1))


def test_last_stage_of_a_tied_model_takes_the_embedding_table() -> None:
    table = Renamed("token_embd.weight", "output.weight", otherwise="token_embd.weight")
    last = recipe(2, 3, "*", renamed=(table,))
    tied = replace(manifest(), embeddings=artifact(EMBEDDINGS, size=4096))
    assert (manifest().has_head, tied.has_head) == (True, False)
    assert EMBEDDINGS not in artifacts_for(manifest(), last)
    assert EMBEDDINGS in artifacts_for(tied, last)


def test_recipe_of_a_deeper_model_is_refused() -> None:
    with pytest.raises(ModelError, match="4 layers by its metadata, and 3 by its manifest"):
        artifacts_for(manifest(), changed(recipe(0, 1), total=4))


@given(st.integers(1, 40 * PIECE))
def test_pieces_cover_an_artifact_without_gaps(size: int) -> None:
    at = 0
    for number in range(piece_count(size)):
        offset, length = piece_range(size, number)
        assert offset == at
        assert 0 < length <= PIECE
        at += length
    assert at == size


def test_reference_names_both_files_or_the_manifest_alone() -> None:
    for pieces in ("", "1" * 64):
        ref = PackageRef(manifest=SHA, pieces=pieces)
        assert msgspec.json.decode(msgspec.json.encode(ref), type=PackageRef) == ref
    for wrong in ("1" * 63, "x" * 64):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"manifest": SHA, "pieces": wrong}, PackageRef)


def test_tensors_that_overlap_are_refused() -> None:
    check_ranges([tensor("b", 32), tensor("a", 0)])
    with pytest.raises(ModelError, match="'a' and 'b' overlap"):
        check_ranges([tensor("b", 31), tensor("a", 0)])
    with pytest.raises(ModelError, match="tensor 'a' twice"):
        check_ranges([tensor("a", 32), tensor("a", 0)])
    with pytest.raises(ModelError, match="'a' has no bytes, or the type 0"):
        check_ranges([tensor("a", 32, 0)])


def test_header_is_as_the_manifest_says() -> None:
    for path, found in headers().items():
        check_artifact(manifest(), path, found)
    check_artifact(manifest(), "projectors/p.gguf", header(tensor("v.patch_embd.weight")))
    with pytest.raises(ModelError, match="2 tensors of 64 bytes; the manifest says 1 of 32"):
        check_artifact(manifest(), OUTPUT, header(tensor("output.weight"), tensor("b", 32)))
    with pytest.raises(ModelError, match=r"'blk\.1\.x', which belongs elsewhere"):
        check_artifact(manifest(), layer_path(0), header(tensor("blk.1.x")))


def test_published_artifact_may_repeat_what_belongs_to_no_layer() -> None:
    """As the format's first writer does with `rope_freqs.weight`."""
    repeated = tensor("rope_freqs.weight", 32)
    found = {path: header(*one.tensors, repeated) for path, one in headers().items()}
    check_whole(manifest(), found)
    wide = replace(manifest(), layers=tuple(artifact(layer_path(one), 2) for one in range(3)))
    check_artifact(wide, layer_path(0), found[layer_path(0)])


def test_tensor_is_in_one_artifact() -> None:
    check_whole(manifest(), headers())
    twice = {**headers(), OUTPUT: header(tensor("token_embd.weight"))}
    with pytest.raises(ModelError, match=f"is in {EMBEDDINGS} and in {OUTPUT}"):
        check_whole(manifest(), twice)
    other = {**headers(), METADATA: header(tensor("a")), OUTPUT: header(tensor("a", 0, 64))}
    with pytest.raises(ModelError, match=f"is in {METADATA} and in {OUTPUT}"):
        check_whole(manifest(), other)


def test_artifact_of_another_architecture_is_refused() -> None:
    strange = {**headers(), OUTPUT: header(architecture="mamba")}
    with pytest.raises(ModelError, match="is of a 'mamba', and the package of a 'llama'"):
        check_whole(manifest(), strange)
    check_whole(manifest(), {**headers(), OUTPUT: header(architecture="")})


def test_ranges_take_the_pieces_that_they_touch() -> None:
    size = 3 * PIECE + 5
    assert pieces_of(size, []) == frozenset()
    assert pieces_of(size, [(0, 0), (size, 0)]) == frozenset()
    assert pieces_of(size, [(0, 1)]) == {0}
    assert pieces_of(size, [(PIECE - 1, 2), (size - 1, 1)]) == {0, 1, 3}
    assert pieces_of(size, [(0, size)]) == {0, 1, 2, 3}


@pytest.mark.parametrize("wrong", [(-1, 2), (0, -1), (0, 101), (100, 1), (2**60, 1)])
def test_range_beyond_an_artifact_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="it has 100 bytes"):
        pieces_of(100, [wrong])


@given(st.integers(0, 5 * PIECE), st.integers(1, 4 * PIECE))
def test_pieces_cover_the_range_and_no_piece_is_idle(offset: int, length: int) -> None:
    size = 9 * PIECE
    places = [piece_range(size, number) for number in sorted(pieces_of(size, [(offset, length)]))]
    assert places[0][0] <= offset < places[0][0] + places[0][1]
    assert places[-1][0] < offset + length <= sum(places[-1])
    assert all(sum(before) == after[0] for before, after in pairwise(places))
