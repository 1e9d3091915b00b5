"""A real embedding model, converted from its wheel: what it makes of sentences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from meshnode_llama_cpp.backend import LlamaCpp
from meshnode_llama_cpp.embedder import Embedder
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import EmbedQuery, RerankQuery, Scores, Vectors
from p2p_mesh.errors import RequestError
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.store import read
from p2p_mesh.testing.mesh import NoMesh
from p2p_mesh.testing.models import write_embedder

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_minilm.py"
HEADS, EPSILON = 12, 1e-12

PAIRS = [
    ("A cat sits on the mat.", "A kitten is resting on a rug."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The stock market fell sharply today.", "Shares dropped a lot this afternoon."),
    ("She is playing the violin.", "A woman performs music on a string instrument."),
]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Converted once for each user, and kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "meshnode" / "tests" / "all-minilm-l6-v2.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the model cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    return path


@pytest.fixture(scope="module")
def model(minilm: Path) -> Model:
    start()
    return Model(str(minilm), name="minilm", progress=lambda _: None)


@pytest.fixture(scope="module")
def embedder(model: Model) -> Embedder:
    return Embedder(model, context=512, threads=1)


def embed(embedder: Embedder, *texts: str) -> NDArray[np.float32]:
    query = EmbedQuery(model=ModelId("minilm"), inputs=texts)
    found = embedder.answer(query)
    assert isinstance(found, Vectors)
    return np.array([np.frombuffer(one, "<f4") for one in found.vectors])


def test_the_header_is_that_of_an_encoder(minilm: Path) -> None:
    found = read(minilm)
    assert (found.architecture, found.context_length, found.kv_bytes_per_token) == ("bert", 512, 0)


def test_words_are_cut_as_bert_cuts_them(model: Model) -> None:
    assert model.tokenize("Hello world!") == [101, 7592, 2088, 999, 102]
    assert model.tokenize("unaffable") == [101, 14477, 20961, 3468, 102]


def test_each_sentence_is_nearest_to_its_paraphrase(embedder: Embedder) -> None:
    left = embed(embedder, *(one for one, _ in PAIRS))
    right = embed(embedder, *(other for _, other in PAIRS))
    cosines = left @ right.T
    assert cosines.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert cosines.diagonal().min() > 0.4
    assert (cosines - np.diag(cosines.diagonal())).max() < 0.25


def test_likeness_falls_in_the_right_order(embedder: Embedder) -> None:
    same, near, related, far = embed(
        embedder, "A man is eating food.", "A man eats a meal.", "A woman cooks dinner.",
        "The rocket reached orbit.",
    )  # fmt: skip
    cosines = [float(same @ one) for one in (same, near, related, far)]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(1, abs=1e-6)
    assert cosines[1] > 0.7 > 0.2 > cosines[3]


def test_vectors_are_those_of_the_same_network_in_numpy(
    minilm: Path, model: Model, embedder: Embedder
) -> None:
    weights = {one.name: np.array(one.data, np.float32)
               for one in gguf.GGUFReader(minilm).tensors}  # fmt: skip
    texts = ("Hello world", PAIRS[0][0], " ".join(one for one, _ in PAIRS * 4))
    for text, found in zip(texts, embed(embedder, *texts), strict=True):
        assert np.abs(found - network(weights, model.tokenize(text))).max() < 1e-2


def test_company_changes_nothing(embedder: Embedder) -> None:
    texts = [text for pair in PAIRS for text in pair]
    alone = np.array([embed(embedder, text)[0] for text in texts])
    assert np.abs(embed(embedder, *texts) - alone).max() < 1e-6


async def test_an_engine_process_gives_the_same_vectors(minilm: Path, embedder: Embedder) -> None:
    load = Load(read(minilm), threads=1)
    async with LlamaCpp().open(load, mesh=NoMesh()) as engine:
        described = engine.describe()
        found = await engine.query(EmbedQuery(model=ModelId("minilm"), inputs=("Hello world",)))
    assert described.capabilities == {"embed"}
    assert described.context == 512
    assert isinstance(found, Vectors)
    expected = embed(embedder, "Hello world")[0]
    assert np.abs(np.frombuffer(found.vectors[0], "<f4") - expected).max() < 1e-6
    assert found.prompt_tokens == 4


async def test_an_engine_process_ranks(tmp_path: Path) -> None:
    model = write_embedder(tmp_path / "cross.gguf", pooling="rank")
    query = RerankQuery(model=ModelId("cross"), query="the cat", documents=("a dog", "the cat"))
    async with LlamaCpp().open(Load(model, threads=1), mesh=NoMesh()) as engine:
        assert engine.describe().capabilities == {"rerank"}
        found = await engine.query(query)
        with pytest.raises(RequestError):
            await engine.query(EmbedQuery(model=ModelId("cross"), inputs=("the cat",)))
    assert isinstance(found, Scores)
    assert len(set(found.scores)) == 2


def network(weights: dict[str, Any], tokens: list[int]) -> Any:
    """BERT, the mean of its tokens, at length one."""
    hidden = weights["token_embd.weight"][tokens] + weights["token_types.weight"][0]
    hidden = hidden + weights["position_embd.weight"][: len(tokens)]
    hidden = norm(weights, "token_embd_norm", hidden)
    for layer in range(6):
        hidden = block(weights, f"blk.{layer}.", hidden)
    pooled = hidden.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


def block(weights: dict[str, Any], at: str, hidden: Any) -> Any:
    query, key, value = (split(linear(weights, f"{at}attn_{part}", hidden)) for part in "qkv")
    scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    seen = (shares @ value).swapaxes(0, 1).reshape(hidden.shape)
    hidden = norm(weights, f"{at}attn_output_norm",
                  hidden + linear(weights, f"{at}attn_output", seen))  # fmt: skip
    fed = linear(weights, f"{at}ffn_down", gelu(linear(weights, f"{at}ffn_up", hidden)))
    return norm(weights, f"{at}layer_output_norm", hidden + fed)


def split(rows: Any) -> Any:
    """Heads first."""
    return rows.reshape(len(rows), HEADS, -1).swapaxes(0, 1)


def linear(weights: dict[str, Any], name: str, rows: Any) -> Any:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict[str, Any], name: str, rows: Any) -> Any:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(rows.var(axis=-1, keepdims=True) + EPSILON)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(rows: Any) -> Any:
    return rows * 0.5 * (1 + np.tanh(0.7978845608 * (rows + 0.044715 * rows**3)))
