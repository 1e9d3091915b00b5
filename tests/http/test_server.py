"""What needs no socket; the rest is in tests/real/test_http_server.py."""

import errno
from typing import Any

from p2p_mesh.http.server import Room, why_not


def test_reason_names_the_flag() -> None:
    assert why_not(errno.EADDRINUSE, "::1", 9337, "--port") == (
        "port 9337 is in use; choose another with --port"
    )
    assert "--console" in why_not(errno.EACCES, "::1", 80, "--console")
    assert "10.9.9.9 is not an address" in why_not(errno.EADDRNOTAVAIL, "10.9.9.9", 1, "--port")
    assert "ENFILE" in why_not(errno.ENFILE, "::1", 1, "--port")


class FakeStream:
    """A connection from an address."""

    def __init__(self, address: str) -> None:
        self.socket = self
        self._address = address

    def getpeername(self) -> tuple[str, int]:
        return self._address, 1


def test_room_is_bounded_in_all_and_for_each_other_machine() -> None:
    room = Room(most=4, most_of_one=1)
    far: Any = FakeStream("192.0.2.7")
    near: Any = FakeStream("127.0.0.1")
    with room.taken_by(far) as first, room.taken_by(far) as second:
        assert (first, second) == (True, False)
        with room.taken_by(near), room.taken_by(near), room.taken_by(near) as third:
            assert third
            with room.taken_by(near) as fourth:
                assert not fourth
    with room.taken_by(far) as again:
        assert again
