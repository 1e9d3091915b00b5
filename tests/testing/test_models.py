from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.records import ModelFile
from p2p_mesh.serve.store import read
from p2p_mesh.testing.models import (
    CHATML,
    WINDOW,
    Kind,
    Lies,
    Pooling,
    Router,
    Shape,
    write_embedder,
    write_model,
    write_moe,
    write_reranker,
    write_truncated,
)

KINDS: list[Kind] = ["llama", "sliding", "recurrent", "hybrid"]


def logits(model: Model, tokens: list[int]) -> np.ndarray:
    """What a model says after those tokens."""
    params = L.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    context = L.llama_init_from_model(model.handle, params)
    array = (L.llama_token * len(tokens))(*tokens)
    assert L.llama_decode(context, L.llama_batch_get_one(array, len(tokens))) == 0
    found = np.ctypeslib.as_array(L.llama_get_logits_ith(context, -1), (512,)).copy()
    L.llama_free(context)
    return found


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_model(tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_a_model_is_small_and_describes_itself(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    assert (model.id, model.architecture, model.context_length) == ("tiny", "llama", 512)
    assert model.size_bytes == (tmp_path / "tiny.gguf").stat().st_size < 300_000
    assert model.kv_bytes_per_token == 256


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_template_is_in_the_header(tmp_path: Path, template: str | None) -> None:
    write_model(tmp_path / "tiny.gguf", template=template)
    field = gguf.GGUFReader(tmp_path / "tiny.gguf").fields.get("tokenizer.chat_template")
    assert (field and field.contents()) == template


def test_lies_are_told_and_weights_kept(tmp_path: Path) -> None:
    write_model(tmp_path / "liar.gguf", lies=Lies(layers=10**9), shape=Shape(layers=1))
    reader = gguf.GGUFReader(tmp_path / "liar.gguf")
    assert reader.fields["llama.block_count"].contents() == 10**9
    assert len(reader.tensors) == 12


def test_wide_weights_are_f64(tmp_path: Path) -> None:
    write_model(tmp_path / "wide.gguf", wide=True)
    kinds = {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "wide.gguf").tensors}
    assert kinds == {gguf.GGMLQuantizationType.F64}


def test_an_endless_model_gives_its_ends_no_weight(tmp_path: Path) -> None:
    write_model(tmp_path / "endless.gguf", endless=True)
    output = next(tensor for tensor in gguf.GGUFReader(tmp_path / "endless.gguf").tensors
                  if tensor.name == "output.weight")  # fmt: skip
    assert not output.data[[2, 4]].any()
    assert output.data[[1, 3]].any()


def test_a_truncated_file_is_shorter(tmp_path: Path) -> None:
    whole, cut = write_model(tmp_path / "a"), write_truncated(tmp_path / "b", keep=0.25)
    assert cut.size_bytes == whole.size_bytes // 4


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_memory_load_and_remember(tmp_path: Path, kind: Kind) -> None:
    start()
    path = write_model(tmp_path / "tiny.gguf", kind=kind).path
    model = Model(path, name="tiny", progress=lambda _: None)
    tail = list(range(300, 420))
    first, other = (logits(model, [token, *tail]) for token in (10, 11))
    assert np.isfinite(first).all()
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "facts"),
    [("llama", (0, False, False)), ("sliding", (WINDOW, False, False)),
     ("recurrent", (0, True, False)), ("hybrid", (0, False, True))],
)  # fmt: skip
def test_llama_cpp_sees_the_memory_that_was_meant(
    tmp_path: Path, kind: Kind, facts: tuple[int, bool, bool]
) -> None:
    start()
    path = write_model(tmp_path / "tiny.gguf", kind=kind).path
    handle = Model(path, name="tiny", progress=lambda _: None).handle
    found = (L.llama_model_n_swa(handle), L.llama_model_is_recurrent(handle),
             L.llama_model_is_hybrid(handle))  # fmt: skip
    assert found == facts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [Shape(), Shape(layers=5, width=128, heads=4)])
def test_a_description_is_what_the_header_says(tmp_path: Path, kind: Kind, shape: Shape) -> None:
    found = write_model(tmp_path / "tiny.gguf", kind=kind, shape=shape)
    assert found == read(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("pooling", ["mean", "cls", "rank"])
def test_an_embedder_describes_itself(tmp_path: Path, pooling: Pooling) -> None:
    found = write_embedder(tmp_path / "tiny.gguf", pooling=pooling)
    assert found == read(tmp_path / "tiny.gguf")
    assert (found.architecture, found.kv_bytes_per_token) == ("bert", 0)


def test_a_reranker_describes_itself(tmp_path: Path) -> None:
    found: ModelFile = write_reranker(tmp_path / "tiny.gguf", template="{query} {document}")
    assert found == read(tmp_path / "tiny.gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert "cls.output.weight" in names
    assert "output.weight" not in names


def test_a_decoder_can_say_that_it_embeds(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf", pooling="last")
    fields = gguf.GGUFReader(tmp_path / "tiny.gguf").fields
    assert fields["llama.pooling_type"].contents() == 3


ROUTERS: list[Router] = ["softmax", "grouped"]


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize(("experts", "used", "feed"), [(16, 4, 32), (64, 8, 64)])
def test_a_mixture_of_experts_describes_itself(
    tmp_path: Path, kind: Router, experts: int, used: int, feed: int
) -> None:
    found = write_moe(tmp_path / "moe.gguf", kind=kind, experts=experts, used=used, feed=feed)
    assert found == read(tmp_path / "moe.gguf")
    assert (found.experts, found.experts_used) == (experts, used)


def test_a_mixture_of_experts_is_drawn_from_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_moe(tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


@pytest.mark.parametrize("kind", ROUTERS)
def test_mixtures_of_experts_load_and_go_by_their_routers(tmp_path: Path, kind: Router) -> None:
    """The fewer experts a token goes through, the more it matters which."""
    start()
    found = []
    for name, used in (("all", 8), ("some", 4)):
        path = write_moe(tmp_path / f"{name}.gguf", kind=kind, experts=8, used=used).path
        model = Model(path, name=name, progress=lambda _: None)
        found.append(logits(model, list(range(300, 420))))
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_an_endless_mixture_gives_its_ends_no_weight(tmp_path: Path) -> None:
    write_moe(tmp_path / "endless.gguf", endless=True, template=None)
    output = next(tensor for tensor in gguf.GGUFReader(tmp_path / "endless.gguf").tensors
                  if tensor.name == "output.weight")  # fmt: skip
    assert not output.data[[2, 4]].any()
