from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing

import pytest
from meshnode_skippy.direct import KEY, PATIENCE, Listener, Sealed, dial

from p2p_mesh.errors import RemoteError

HOST = "127.0.0.1"


def linked() -> tuple[Sealed, Sealed]:
    key = os.urandom(KEY)
    with closing(Listener(key)) as listener:
        out = dial([HOST], listener.port, key)
        into = listener.accept()
    assert out is not None
    assert into is not None
    return out, into


def test_frames_arrive_as_they_were_sent() -> None:
    out, into = linked()
    with closing(out), closing(into):
        out.send([b"one", b" frame"])
        out.send([b""])
        assert into.receive() == b"one frame"
        assert into.receive() == b""


def test_large_frames_arrive_whole() -> None:
    out, into = linked()
    data = os.urandom(9 << 20)
    with closing(out), closing(into):
        thread = threading.Thread(target=out.send, args=([data],))
        thread.start()
        assert into.receive() == data
        thread.join()


def test_nothing_on_the_way_can_be_read() -> None:
    with socket.create_server((HOST, 0)) as server:
        out = dial([HOST], server.getsockname()[1], os.urandom(KEY))
        assert out is not None
        connection, _ = server.accept()
        with closing(out), connection:
            out.send([b"a secret that is long enough"])
            out._socket.shutdown(socket.SHUT_WR)
            seen = b"".join(iter(lambda: connection.recv(1000), b""))
    assert len(seen) > 28
    assert b"secret" not in seen


def test_who_has_another_key_is_hung_up_on() -> None:
    key = os.urandom(KEY)
    with closing(Listener(key)) as listener:
        stranger = dial([HOST], listener.port, os.urandom(KEY))
        assert stranger is not None
        assert listener.accept() is None
        stranger.close()
        friend = dial([HOST], listener.port, key)
        found = listener.accept()
        assert found is not None
        assert friend is not None
        friend.close()
        found.close()


def test_a_listener_tires_of_strangers() -> None:
    with closing(Listener(os.urandom(KEY))) as listener:
        while not listener.is_tired:
            with socket.create_connection((HOST, listener.port)):
                pass
            listener.accept()


def test_a_stranger_who_drips_is_not_waited_for() -> None:
    with closing(Listener(os.urandom(KEY))) as listener:
        with socket.create_connection((HOST, listener.port)) as stranger:
            stranger.sendall((1 << 20).to_bytes(4, "little") + bytes(16))
            begun = time.perf_counter()
            assert listener.accept() is None
        with socket.create_connection((HOST, listener.port)) as stranger:
            stranger.sendall(b"\x10")
            assert listener.accept() is None
        assert time.perf_counter() - begun < PATIENCE + 0.5


def test_frames_that_are_too_long_or_too_short_are_refused() -> None:
    out, into = linked()
    with closing(out), closing(into):
        out._socket.sendall((2**31).to_bytes(4, "little"))
        with pytest.raises(RemoteError, match="is the limit"):
            into.receive()


def test_a_frame_is_good_once() -> None:
    out, into = linked()
    with closing(out), closing(into):
        out.send([b"again"])
        out._count -= 1
        out.send([b"again"])
        assert into.receive() == b"again"
        with pytest.raises(RemoteError, match="another key"):
            into.receive()


def test_the_other_ends_death_is_seen() -> None:
    out, into = linked()
    out.close()
    with closing(into), pytest.raises(EOFError):
        into.receive()


def test_a_listener_keeps_to_its_address() -> None:
    for host in (HOST, "::1"):
        with closing(Listener(os.urandom(KEY), host)) as listener:
            assert listener._socket.getsockname()[0] == host
    with pytest.raises(OSError, match=r".+"):
        Listener(os.urandom(KEY), "192.0.2.77")


def test_nobody_there_is_no_link() -> None:
    with closing(Listener(os.urandom(KEY))) as listener:
        port = listener.port
    assert dial([HOST], port, os.urandom(KEY)) is None
    assert dial([], port, os.urandom(KEY)) is None
