"""Pieces of artifacts that come without the rest."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2p_mesh.core.package import PIECE
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.incoming import FOLDER, Incoming
from p2p_mesh.serve.package.partial import Partial
from tests.serve.package.test_incoming import ARTIFACT, DATA, HASHES, PATH, pieces


class Package:
    """One that has a single artifact to come."""

    def __init__(self, folder: Path) -> None:
        self.ref = SimpleNamespace(manifest="f" * 64)
        self.manifest = SimpleNamespace(model_id="m")
        self._folder = folder
        self.made: list[Incoming] = []

    async def incoming(self, path: str) -> Incoming:
        assert path == PATH
        self.made.append(Incoming(ARTIFACT, HASHES, self._folder / PATH))
        return self.made[-1]


def partial(folder: Path, *wanted: int) -> Partial:
    package: Any = Package(folder)
    return Partial(package, {PATH: wanted})


async def test_only_the_pieces_that_are_wanted_are_missing(tmp_path: Path) -> None:
    found = partial(tmp_path, 2, 0)
    assert (found.ref.manifest, found.manifest.model_id) == ("f" * 64, "m")
    assert await found.missing() == {PATH: PIECE + len(b"the end")}
    some = await found.incoming(PATH)
    assert some is await found.incoming(PATH)
    assert some.missing() == (0, 2)
    assert (some.artifact, some.received) == (ARTIFACT, 0)
    assert await some.put(0, pieces()[0])
    assert not await some.put(2, b"the END")
    assert (some.missing(), some.received) == ((2,), PIECE)
    assert not await some.finish()
    assert await some.put(2, pieces()[2])
    assert await found.missing() == {}
    assert await some.finish()
    assert not (tmp_path / PATH).exists()


async def test_what_came_is_read_and_nothing_else(tmp_path: Path) -> None:
    found = partial(tmp_path, 0)
    await (await found.incoming(PATH)).put(0, pieces()[0])
    read = found.read(PATH)
    assert read(5, 1000) == DATA[5:1005]
    assert read(PIECE, 0) == b""
    for offset, length in ((PIECE - 1, 2), (PIECE, 1), (0, len(DATA)), (-1, 2), (0, 2**40)):
        with pytest.raises(ModelError):
            read(offset, length)


async def test_last_piece_makes_it_whole_and_it_is_read_on(tmp_path: Path) -> None:
    found = partial(tmp_path, 1)
    some = await found.incoming(PATH)
    for number, data in enumerate(pieces()):
        assert await some.put(number, data)
    assert await some.finish()
    assert some.is_finished
    assert hashlib.sha256((tmp_path / PATH).read_bytes()).hexdigest() == ARTIFACT.sha256
    assert found.read(PATH)(0, len(DATA)) == DATA


async def test_what_an_earlier_start_left_is_checked_again(tmp_path: Path) -> None:
    before = await partial(tmp_path, 0, 1).incoming(PATH)
    for number in (0, 1):
        await before.put(number, pieces()[number])
    (left,) = (tmp_path / FOLDER).glob("*.part")
    with left.open("r+b") as file:
        file.seek(PIECE + 9)
        file.write(b"rotten")
    found = partial(tmp_path, 0, 1)
    assert await found.missing() == {PATH: PIECE}
    some = await found.incoming(PATH)
    assert some.missing() == (1,)
    assert await some.put(1, pieces()[1])
    assert found.read(PATH)(0, 2 * PIECE) == DATA[: 2 * PIECE]
    await some.forget()
    assert some.missing() == (0, 1)


async def test_file_that_vanishes_or_shrinks_in_use_is_an_error(tmp_path: Path) -> None:
    found = partial(tmp_path, 0)
    await (await found.incoming(PATH)).put(0, pieces()[0])
    (left,) = (tmp_path / FOLDER).glob("*.part")
    left.write_bytes(b"short")
    with pytest.raises(ModelError, match="cut off"):
        found.read(PATH)(0, 100)
    left.unlink()
    with pytest.raises(ModelError, match="gone"):
        found.read(PATH)(0, 100)
    left.mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        found.read(PATH)(0, 100)
