"""The GGUF of a stage, written from the files of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from meshnode_skippy import composing
from meshnode_skippy.composing import compose, repeat

from p2p_mesh.core.families import Recipe, study
from p2p_mesh.core.families.recipe import VOCABULARY, Renamed
from p2p_mesh.core.gguf import Header, Value, read_header
from p2p_mesh.errors import ModelError

WIDTH, VOCABULARY_SIZE, LAYERS = 32, 5, 3
Tensors = dict[str, np.ndarray[Any, Any]]


def tensors() -> Tensors:
    random = np.random.default_rng(7)
    found = {
        "token_embd.weight": random.normal(size=(VOCABULARY_SIZE, WIDTH)),
        "output.weight": random.normal(size=(VOCABULARY_SIZE, WIDTH)),
        "output_norm.weight": random.normal(size=WIDTH),
        "rope_freqs.weight": random.normal(size=4),
    }
    for layer in range(LAYERS):
        found[f"blk.{layer}.attn_norm.weight"] = random.normal(size=WIDTH)
        found[f"blk.{layer}.ffn_down.weight"] = random.normal(size=(WIDTH, WIDTH))
    return {name: data.astype(np.float32) for name, data in found.items()}


def write(path: Path, held: Tensors, architecture: str = "llama", **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_array(f"{architecture}.feed_forward_length", [32, 64, 96])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{at}" for at in range(VOCABULARY_SIZE)])
    for key, value in keys.items():
        name = f"{architecture}.{key}" if "__" not in key else key.replace("__", ".")
        add = writer.add_uint32 if isinstance(value, int) else writer.add_array
        add(name, value)
    for name, data in held.items():
        quantised = name == "blk.1.ffn_down.weight"
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else None
        writer.add_tensor(name, gguf.quantize(data, kind) if kind else data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", tensors())


def header(path: Path) -> Header:
    data = path.read_bytes()
    return read_header(data, len(data))


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {one.name: one for one in reader.tensors}


def stage(model: Path, start: int, end: int) -> Path:
    target = model.with_name(f"{start}-{end}.gguf")
    recipe = study(header(model)).recipe(start, end)
    compose(recipe, metadata=model, sources=[model], target=target)
    return target


def bytes_of(path: Path, name: str) -> bytes:
    return bytes(read(path)[1][name].data.tobytes())


def test_the_layers_of_a_stage_are_the_model_s_to_the_last_bit(model: Path) -> None:
    target = stage(model, 1, 2)
    for name in ("attn_norm.weight", "ffn_down.weight"):
        assert bytes_of(target, f"blk.0.{name}") == bytes_of(model, f"blk.1.{name}")
    kinds = read(target)[1]
    assert kinds["blk.0.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert bytes_of(target, "rope_freqs.weight") == bytes_of(model, "rope_freqs.weight")


def test_a_middle_stage_holds_no_vocabulary(model: Path) -> None:
    values, found = read(stage(model, 1, 2))
    assert values["tokenizer.ggml.model"] == "none"
    assert values["llama.vocab_size"] == 1
    assert "tokenizer.ggml.tokens" not in values
    assert list(found["token_embd.weight"].shape) == [WIDTH, 1]
    assert "output.weight" not in found
    assert not any(found["output_norm.weight"].data)


def test_keys_of_layers_are_cut_and_keep_their_types(model: Path) -> None:
    target = stage(model, 1, 3)
    values, _ = read(target)
    assert values["llama.block_count"] == 2
    assert values["llama.feed_forward_length"] == [64, 96]
    before, after = (gguf.GGUFReader(path) for path in (model, target))
    for name in ("llama.block_count", "llama.feed_forward_length", "llama.embedding_length"):
        assert before.fields[name].types == after.fields[name].types


def test_the_last_stage_holds_one_matrix_of_the_vocabulary(model: Path) -> None:
    target = stage(model, 2, 3)
    values, found = read(target)
    assert len(values["tokenizer.ggml.tokens"]) == VOCABULARY_SIZE
    assert bytes_of(target, "token_embd.weight") == bytes_of(model, "output.weight")
    assert "output.weight" not in found
    assert bytes_of(target, "output_norm.weight") == bytes_of(model, "output_norm.weight")


def test_the_last_stage_of_a_tied_model_holds_its_embeddings(tmp_path: Path) -> None:
    held = tensors()
    del held["output.weight"]
    tied = write(tmp_path / "tied.gguf", held)
    target = stage(tied, 2, 3)
    assert bytes_of(target, "token_embd.weight") == bytes_of(tied, "token_embd.weight")


def test_a_table_that_nobody_reads_is_a_hole_of_a_small_type(tmp_path: Path) -> None:
    model = write(tmp_path / "model.gguf", tensors(), "olmoe")
    found = read(stage(model, 2, 3))[1]["token_embd.weight"]
    assert list(found.shape) == [WIDTH, VOCABULARY_SIZE]
    assert found.tensor_type == gguf.GGMLQuantizationType.Q4_0
    assert not found.data.any()


def test_it_tells_how_much_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "CHUNK", 256)
    shares: list[float] = []
    recipe = study(header(model)).recipe(0, 3)
    target = tmp_path / "s.gguf"
    compose(recipe, metadata=model, sources=[model], target=target, progress=shares.append)
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert len(shares) > 30


def test_a_file_that_is_given_up_is_removed(model: Path, tmp_path: Path) -> None:
    class EnoughError(Exception): ...

    def give_up(share: float) -> None:
        assert list(tmp_path.glob("s.gguf*"))
        raise EnoughError

    recipe = study(header(model)).recipe(1, 2)
    with pytest.raises(EnoughError):
        compose(recipe, metadata=model, sources=[model], target=tmp_path / "s.gguf",
                progress=give_up)  # fmt: skip
    assert not list(tmp_path.glob("s.gguf*"))


def test_parts_may_lie_in_several_files(model: Path, tmp_path: Path) -> None:
    held = tensors()
    one = write(tmp_path / "a.gguf", {name: held.pop(name) for name in list(held)[:5]})
    two = write(tmp_path / "b.gguf", held)
    recipe = study(header(model)).recipe(0, 3)
    compose(recipe, metadata=one, sources=[one, two], target=tmp_path / "whole.gguf")
    whole = read(tmp_path / "whole.gguf")[1]
    assert set(whole) == set(tensors())
    assert all(whole[name].data.tobytes() == one.data.tobytes()
               for name, one in read(model)[1].items())  # fmt: skip


def test_two_stages_together_hold_every_layer_once(model: Path) -> None:
    found = [name for cut in ((0, 2), (2, 3)) for name in read(stage(model, *cut))[1]]
    assert len([name for name in found if name.endswith("attn_norm.weight")]) == LAYERS


def test_a_missing_layer_is_named(model: Path, tmp_path: Path) -> None:
    held = {name: data for name, data in tensors().items() if not name.startswith("blk.1.")}
    partial = write(tmp_path / "partial.gguf", held)
    recipe = study(header(model)).recipe(1, 2)
    with pytest.raises(ModelError, match="tensors of layer 1"):
        compose(recipe, metadata=model, sources=[partial], target=tmp_path / "s.gguf")
    assert not list(tmp_path.glob("s.gguf*"))


def test_a_missing_head_is_named(model: Path, tmp_path: Path) -> None:
    held = {name: data for name, data in tensors().items() if "blk" in name}
    partial = write(tmp_path / "partial.gguf", held)
    recipe = study(header(model)).recipe(2, 3)
    with pytest.raises(ModelError, match=r"output\.weight"):
        compose(recipe, metadata=model, sources=[partial], target=tmp_path / "s.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"nonsense" * 9])
def test_files_that_are_none_are_refused(model: Path, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    recipe = study(header(model)).recipe(1, 2)
    for metadata, source in ((bad, model), (model, bad)):
        with pytest.raises(ModelError, match=r"bad\.gguf"):
            compose(recipe, metadata=metadata, sources=[source], target=tmp_path / "s.gguf")


def test_keys_without_an_architecture_are_refused(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    recipe = study(header(model)).recipe(1, 2)
    with pytest.raises(ModelError, match="architecture"):
        compose(recipe, metadata=bare, sources=[model], target=tmp_path / "s.gguf")


@pytest.mark.parametrize(("kind", "rows", "word"), [(5, 1, "type 5"), (0, 0, "is empty")])
def test_tensors_that_cannot_be_copied_are_named(
    model: Path, tmp_path: Path, kind: int, rows: int, word: str
) -> None:
    odd = tmp_path / "odd.gguf"
    name = b"blk.1.odd"
    held = len(name).to_bytes(8, "little") + name + (1).to_bytes(4, "little")
    held += rows.to_bytes(8, "little") + kind.to_bytes(4, "little") + bytes(8)
    counts = (1).to_bytes(8, "little") + bytes(8)
    odd.write_bytes((b"GGUF" + (3).to_bytes(4, "little") + counts + held).ljust(256, b"\0"))
    recipe = study(header(model)).recipe(1, 2)
    with pytest.raises(ModelError, match=f"^the tensor 'blk.1.odd'.*{word}"):
        compose(recipe, metadata=model, sources=[model, odd], target=tmp_path / "s.gguf")


def test_numbers_are_scaled_where_a_recipe_says_so(model: Path, tmp_path: Path) -> None:
    recipe = study(header(model)).recipe(0, 1)
    scaled = Renamed("blk.0.ffn_down.weight", "blk.0.ffn_down.weight", factor=0.5)
    recipe = replace(recipe, renamed=(*recipe.renamed, scaled))
    compose(recipe, metadata=model, sources=[model], target=tmp_path / "s.gguf")
    found = read(tmp_path / "s.gguf")[1]["blk.0.ffn_down.weight"].data
    assert np.array_equal(found, tensors()["blk.0.ffn_down.weight"] * np.float32(0.5))


def test_numbers_that_are_packed_are_not_scaled(model: Path, tmp_path: Path) -> None:
    scaled = Renamed("blk.0.ffn_down.weight", "blk.1.ffn_down.weight", factor=0.5)
    recipe = Recipe(1, 2, LAYERS, (1,), "rows", renamed=(scaled,))
    with pytest.raises(ModelError, match="not in F32"):
        compose(recipe, metadata=model, sources=[model], target=tmp_path / "s.gguf")


def test_a_tensor_may_be_emptied(model: Path, tmp_path: Path) -> None:
    emptied = Renamed("output_norm.weight", "output_norm.weight", "zeros")
    recipe = Recipe(1, 2, LAYERS, (1,), "rows", renamed=(emptied,), left_out=("blk.0.x",))
    compose(recipe, metadata=model, sources=[model], target=tmp_path / "s.gguf")
    assert not read(tmp_path / "s.gguf")[1]["output_norm.weight"].data.any()


def test_absurd_tensors_of_zeros_are_refused(model: Path, tmp_path: Path) -> None:
    huge = Renamed("position_embd.weight", "", "zeros", shape=(1 << 40, 1 << 30))
    recipe = Recipe(1, 2, LAYERS, (1,), "rows", renamed=(huge,))
    with pytest.raises(ModelError, match="position_embd"):
        compose(recipe, metadata=model, sources=[model], target=tmp_path / "s.gguf")


def test_keys_may_be_new_of_every_type_and_left_out(model: Path, tmp_path: Path) -> None:
    keys: dict[str, Value | None] = {
        "llama.a": True, "llama.b": 2, "llama.c": 0.5, "llama.d": (True, False),
        "llama.e": (1, 2), "llama.embedding_length": None, "llama.feed_forward_length": 7,
    }  # fmt: skip
    recipe = Recipe(1, 2, LAYERS, (1,), "rows", metadata=keys, has_vocabulary=False)
    table = Renamed("token_embd.weight", "", "zeros", shape=(WIDTH, VOCABULARY))
    recipe = replace(recipe, renamed=(table,))
    compose(recipe, metadata=model, sources=[model], target=tmp_path / "s.gguf")
    values, found = read(tmp_path / "s.gguf")
    assert [values[f"llama.{key}"] for key in "abcde"] == [True, 2, 0.5, [True, False], [1, 2]]
    assert "llama.embedding_length" not in values
    assert values["llama.feed_forward_length"] == 7
    assert list(found["token_embd.weight"].shape) == [WIDTH, 1]


def test_what_is_said_of_single_tensors_follows_their_names(tmp_path: Path) -> None:
    model = write(
        tmp_path / "model.gguf",
        tensors(),
        general__tensor_extra__name=["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"],
        general__tensor_extra__prec_a4=[True, False],
    )
    values, _ = read(stage(model, 1, 2))
    assert values["general.tensor_extra.name"] == ["blk.0.ffn_down.weight"]
    assert values["general.tensor_extra.prec_a4"] == [False]
    assert "general.tensor_extra.name" not in read(stage(model, 2, 3))[0]


def test_the_size_of_a_vocabulary_without_words_is_told_by_its_key(tmp_path: Path) -> None:
    model = write(tmp_path / "model.gguf", tensors(), vocab_size=9)
    target = tmp_path / "s.gguf"
    table = Renamed("token_embd.weight", "", "zeros", shape=(WIDTH, VOCABULARY))
    recipe = Recipe(2, 3, LAYERS, (2,), "rows", renamed=(table,))
    compose(recipe, metadata=model, sources=[model], target=target)
    assert list(read(target)[1]["token_embd.weight"].shape) == [WIDTH, VOCABULARY_SIZE]


def test_a_deeper_model_has_the_layers_again_and_again(model: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.gguf"
    repeat(model, deep, 2)
    values, found = read(deep)
    assert values["llama.block_count"] == 6
    assert values["llama.feed_forward_length"] == [32, 64, 96] * 2
    assert bytes_of(deep, "blk.4.ffn_down.weight") == bytes_of(model, "blk.1.ffn_down.weight")
    assert study(header(deep)).total == 6
    assert set(tensors()) <= set(found)


def test_dense_layers_come_again_with_experts(tmp_path: Path) -> None:
    held = {name: data for name, data in tensors().items() if name != "blk.2.ffn_down.weight"}
    held["blk.2.ffn_down_exps.weight"] = np.ones((2, WIDTH, WIDTH), np.float32)
    model = write(tmp_path / "model.gguf", held, leading_dense_block_count=2)
    repeat(model, tmp_path / "deep.gguf", 2)
    values, found = read(tmp_path / "deep.gguf")
    assert values["llama.leading_dense_block_count"] == 2
    assert "blk.0.ffn_down.weight" in found
    assert "blk.3.ffn_down.weight" not in found
    assert "blk.3.ffn_down_exps.weight" in found
    same = bytes_of(tmp_path / "deep.gguf", "blk.3.attn_norm.weight")
    assert same == bytes_of(model, "blk.0.attn_norm.weight")


def test_one_layer_of_a_deeper_model_looks_tokens_up(tmp_path: Path) -> None:
    held = tensors() | {"blk.1.ple_key.weight": np.ones((2, WIDTH), np.float32)}
    model = write(tmp_path / "m.gguf", held, "qwen4exp", qwen4exp__ple__layers=[1])
    deep = tmp_path / "deep.gguf"
    repeat(model, deep, 2)
    found = read(deep)[1]
    assert "blk.1.ple_key.weight" in found
    assert "blk.4.ple_key.weight" not in found


def test_all_layers_of_a_deeper_ernie_have_experts(tmp_path: Path) -> None:
    model = write(
        tmp_path / "m.gguf", tensors(), "ernie4_5-moe",
        interleave_moe_layer_step=2, leading_dense_block_count=1,
    )  # fmt: skip
    repeat(model, tmp_path / "deep.gguf", 2)
    assert read(tmp_path / "deep.gguf")[0]["ernie4_5-moe.interleave_moe_layer_step"] == 1
