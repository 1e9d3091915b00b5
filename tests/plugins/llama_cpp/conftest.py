"""A tiny model, loaded once into the tests' own process: it is known to be good."""

from __future__ import annotations

import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model

from p2p_mesh.testing.models import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    start()
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_model(path)
    return Model(str(path), name="tiny", progress=lambda _: None)


@pytest.fixture(params=[True, False], ids=["flash", "plain"])
def context(model: Model, request: pytest.FixtureRequest) -> Context:
    return Context(model, Plan(context=256, slots=2, threads=1, rows=48, flash=request.param))
