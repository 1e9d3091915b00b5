"""What may be fetched, and from which hub."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import Artifact, Manifest, PackageRef, SourceModel
from p2p_mesh.errors import ModelError
from p2p_mesh.node.allowed import check_allowed, may_ask_hub
from p2p_mesh.settings import Settings

HUB = "hf://mesh/qwen-layers@" + "0" * 40
REF = PackageRef(manifest=Digest("ab" * 32), hub=HUB)


def manifest() -> Manifest:
    part = Artifact(
        path="a", tensor_count=0, tensor_bytes=0, artifact_bytes=1, sha256=Digest("0" * 64)
    )
    return Manifest(
        model_id="Qwen3 8B", layer_count=1, activation_width=8, metadata=part, embeddings=part,
        output=part, layers=(part,), source=SourceModel(path="m.gguf", sha256="cd" * 32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("allow", "is_right"),
    [
        (("Qwen3*",), True),
        (("hf://mesh/*",), True),
        (("abababab",), True),
        (("cdcdcdcd",), True),
        (("other", "cd" * 32), True),
        (("ababab",), False),
        (("qwen3*", "hf://other/*"), False),
        ((), False),
    ],
)
def test_demand_fetches_what_is_named(allow: tuple[str, ...], is_right: bool) -> None:
    settings = Settings(fetch_allow=allow)
    if is_right:
        check_allowed(settings, REF, manifest())
    else:
        with pytest.raises(ModelError, match="--fetch-allow does not name it"):
            check_allowed(settings, REF, manifest())


@pytest.mark.parametrize(
    ("settings", "is_right"),
    [
        ({}, False),
        ({"fetch_allow": ("hf://mesh/*",)}, True),
        ({"fetch_allow": ("hf://mesh/qwen-layers",)}, True),
        ({"fetch_allow": ("hf://mesh/other", "Qwen3*", "cdcdcdcd")}, False),
        ({"fetch_allow": ("abababab",)}, True),
        ({"model": ("hf://mesh/qwen-layers:v1",)}, True),
        ({"standby": ("hf://mesh/qwen-layers",)}, True),
        ({"share": ("hf://mesh/other", "/m.gguf")}, False),
    ],
)
def test_hub_is_asked_where_a_user_named_it(settings: dict[str, Any], is_right: bool) -> None:
    assert may_ask_hub(Settings(**settings), REF) == is_right


def test_hub_that_is_none_is_nobodys() -> None:
    ref = PackageRef(manifest=Digest("ab" * 32), hub="nonsense")
    assert not may_ask_hub(Settings(model=("/m.gguf",)), ref)
