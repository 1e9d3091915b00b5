"""A package becomes one file again."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from p2p_mesh.core.package import layer_path
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.package.whole import NAME, is_whole, whole
from p2p_mesh.testing.packages import publish_elsewhere, split_model


def content(path: Path) -> tuple[dict[str, object], dict[str, tuple[int, bytes]]]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()
            if not name.startswith("GGUF.")}  # fmt: skip
    return keys, {one.name: (one.tensor_type, bytes(np.array(one.data))) for one in reader.tensors}


async def test_file_of_a_package_is_the_model(packages: Packages, built: Path, model: Path) -> None:
    package = await packages.opened(built)
    seen: list[float] = []
    assert not is_whole(package)
    path = await whole(package, seen.append)
    assert path == package.stages / NAME
    assert is_whole(package)
    assert content(path) == content(model)
    assert seen[-1] == 1.0
    inode = os.stat(path).st_ino
    assert os.stat(await whole(package)).st_ino == inode


async def test_what_another_writer_repeats_is_there_once(
    packages: Packages, model: Path, tmp_path: Path
) -> None:
    package = await packages.opened(publish_elsewhere(model, tmp_path / "elsewhere"))
    assert content(await whole(package)) == content(model)


async def test_virtual_package_is_a_file_already(packages: Packages, model: Path) -> None:
    assert await whole(await packages.opened(model)) == model
    first = split_model(model)
    assert await whole(await packages.opened(first)) == first


async def test_missing_artifact_is_named(packages: Packages, built: Path) -> None:
    os.unlink(built / layer_path(1))
    with pytest.raises(Unavailable, match="layer-00001"):
        await whole(await packages.opened(built))


async def test_file_that_cannot_be_written_is_named(packages: Packages, built: Path) -> None:
    package = await packages.opened(built)
    package.stages.parent.mkdir(parents=True)
    package.stages.write_text("in the way")
    with pytest.raises(ModelError, match=r"whole\.gguf cannot be written"):
        await whole(package)


async def test_failed_writing_leaves_nothing(packages: Packages, built: Path) -> None:
    package = await packages.opened(built)

    def fail(_: float) -> None:
        raise ValueError("of whoever wanted to know")

    with pytest.raises(ValueError, match="of whoever"):
        await whole(package, fail)
    assert os.listdir(package.stages) == []
