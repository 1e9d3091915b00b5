"""An artifact that comes piece by piece, over several starts, from strangers."""

import hashlib
from pathlib import Path

import pytest
import trio

from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import PIECE, Artifact, piece_count, piece_range
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.incoming import FOLDER, Incoming

DATA = bytes(range(256)) * (PIECE // 256) * 2 + b"the end"
PATH = "layers/layer-00000.gguf"


def pieces() -> list[bytes]:
    places = (piece_range(len(DATA), number) for number in range(piece_count(len(DATA))))
    return [DATA[at : at + length] for at, length in places]


HASHES = tuple(hashlib.sha256(one).hexdigest() for one in pieces())
ARTIFACT = Artifact(path=PATH, tensor_count=1, tensor_bytes=9, artifact_bytes=len(DATA),
                    sha256=Digest(hashlib.sha256(DATA).hexdigest()))  # fmt: skip


def incoming(folder: Path, hashes: tuple[str, ...] | None = HASHES) -> Incoming:
    return Incoming(ARTIFACT, hashes, folder / PATH)


async def test_pieces_in_any_order_become_the_file(tmp_path: Path) -> None:
    found = incoming(tmp_path)
    assert found.missing() == (0, 1, 2)
    async with trio.open_nursery() as nursery:
        for number in (2, 0, 1):
            nursery.start_soon(found.put, number, memoryview(pieces()[number]))
    assert (found.missing(), found.received) == ((), len(DATA))
    assert not (tmp_path / PATH).exists()
    assert await found.finish()
    assert found.is_finished
    assert (tmp_path / PATH).read_bytes() == DATA
    assert list((tmp_path / FOLDER).iterdir()) == []


async def test_file_has_no_name_before_it_is_whole(tmp_path: Path) -> None:
    found = incoming(tmp_path)
    assert await found.put(1, pieces()[1])
    assert not await found.finish()
    assert not (tmp_path / PATH).exists()


async def test_what_came_before_a_restart_is_there(tmp_path: Path) -> None:
    assert await incoming(tmp_path).put(1, pieces()[1])
    again = incoming(tmp_path)
    assert again.missing() == (0, 2)
    assert again.received == PIECE
    assert await again.put(0, pieces()[0])
    assert await again.put(2, bytearray(pieces()[2]))
    assert await again.finish()
    assert (tmp_path / PATH).read_bytes() == DATA


@pytest.mark.parametrize(("number", "data"), [
    (0, pieces()[1][:-1] + b"x"), (0, pieces()[0][:-1]), (2, b"the END"), (2, b""), (3, b""),
    (-1, b"the end"), (2**40, b"x"),
])  # fmt: skip
async def test_wrong_piece_is_known_at_once(tmp_path: Path, number: int, data: bytes) -> None:
    found = incoming(tmp_path)
    assert not await found.put(number, data)
    assert found.missing() == (0, 1, 2)


async def test_piece_that_comes_twice_counts_once(tmp_path: Path) -> None:
    found = incoming(tmp_path)
    for _ in range(2):
        assert await found.put(2, pieces()[2])
    assert found.received == len(b"the end")


async def test_without_hashes_of_pieces_the_whole_is_checked(tmp_path: Path) -> None:
    found = incoming(tmp_path, None)
    for number, data in enumerate(pieces()):
        assert await found.put(number, data if number else bytes(len(data)))
    assert not await found.finish()
    assert found.missing() == (0, 1, 2)
    assert list((tmp_path / FOLDER).iterdir()) == []
    for number, data in enumerate(pieces()):
        assert await found.put(number, data)
    assert await found.finish()


@pytest.mark.parametrize("left", [b"", b"\xff\xff\xff\xff", b"\0\0\0\0\1", b"\2\0\0\0"])
async def test_damaged_list_of_pieces_is_believed_only_where_it_can_be(
    tmp_path: Path, left: bytes
) -> None:
    """A number beyond the end, half a number, a piece beyond what was written."""
    assert await incoming(tmp_path).put(0, pieces()[0])
    (listed,) = (tmp_path / FOLDER).glob("*.have")
    listed.write_bytes(left)
    assert set(incoming(tmp_path).missing()) >= {1, 2}


async def test_what_was_right_by_another_list_is_not_taken_for_right(tmp_path: Path) -> None:
    lies = tuple(hashlib.sha256(one[::-1]).hexdigest() for one in pieces())
    assert await incoming(tmp_path, lies).put(0, pieces()[0][::-1])
    assert incoming(tmp_path).missing() == (0, 1, 2)
    assert incoming(tmp_path, None).missing() == (0, 1, 2)
    assert incoming(tmp_path, lies).missing() == (1, 2)


async def test_list_without_data_is_nothing(tmp_path: Path) -> None:
    assert await incoming(tmp_path).put(0, pieces()[0])
    (data,) = (tmp_path / FOLDER).glob("*.part")
    data.unlink()
    assert incoming(tmp_path).missing() == (0, 1, 2)


async def test_data_that_vanish_are_missing_again(tmp_path: Path) -> None:
    found = incoming(tmp_path, None)
    for number, data in enumerate(pieces()):
        await found.put(number, data)
    (tmp_path / FOLDER).joinpath(next((tmp_path / FOLDER).glob("*.part")).name).unlink()
    assert not await found.finish()


async def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        await incoming(tmp_path).put(0, pieces()[0])
    (tmp_path / FOLDER).unlink()
    found = incoming(tmp_path)
    for number, data in enumerate(pieces()):
        await found.put(number, data)
    (tmp_path / "layers").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        await found.finish()
