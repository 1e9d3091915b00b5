from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_flash_moe import shadow
from meshnode_llama_cpp.library import L

from p2p_mesh.errors import ModelError


def opened(path: Path) -> tuple[object, list[shadow.Region]]:
    params = L.llama_model_default_params()
    return shadow.load(
        [path],
        shadow.headers([path]),
        params,
        lambda first: L.llama_model_load_from_file(first, params),
    )


def test_a_model_is_loaded_and_nothing_of_it_is_read(mixture: Path) -> None:
    handle, regions = opened(mixture)
    assert handle
    (region,) = regions
    (header,) = shadow.headers([mixture])
    first = min(one.offset for one in header.tensors)
    last = max(one.offset + one.size for one in header.tensors)
    assert region.offset <= first
    assert region.offset + region.size >= last
    L.llama_model_free(handle)


def test_a_library_that_does_not_say_when_it_begins_is_refused(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_BEGINS", b"never said")
    with pytest.raises(ModelError, match="does not say when it begins"):
        opened(mixture)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no GGUF"):
        shadow.headers([path])
    with pytest.raises(ModelError, match="cannot be read"):
        shadow.headers([tmp_path / "absent.gguf"])
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read"):
        shadow.headers([path])
