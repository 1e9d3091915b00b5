from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import closing

import numpy as np
import pytest
from meshnode_skippy.link import Bell, Link
from meshnode_skippy.wire import MAX_BODY

from p2p_mesh.errors import RemoteError


def pair() -> tuple[Link, socket.socket]:
    ours, theirs = socket.socketpair()
    return Link(ours), theirs


def test_a_frame_is_its_length_and_its_parts() -> None:
    link, theirs = pair()
    with theirs, closing(link):
        link.send([b"one", np.array([1, 2], np.int32), memoryview(b"!")])
        assert theirs.recv(100) == b"\x0c\0\0\0one\x01\0\0\0\x02\0\0\0!"


def test_large_frames_come_whole() -> None:
    one, other = socket.socketpair()
    sender, receiver = Link(one), Link(other)
    data = os.urandom(20 << 20)
    thread = threading.Thread(target=sender.send, args=([data[:5], data[5:]],))
    with closing(sender), closing(receiver):
        thread.start()
        assert receiver.receive() == data
        thread.join()


def test_those_that_wait_are_read_and_no_more_is_waited_for() -> None:
    link, theirs = pair()
    with theirs, closing(link):
        theirs.sendall(b"\x01\0\0\0a\x02\0\0\0bc")
        assert list(link.waiting()) == [b"a", b"bc"]
        assert list(link.waiting()) == []


def test_the_end_of_the_node_is_told() -> None:
    link, theirs = pair()
    theirs.close()
    with closing(link), pytest.raises(EOFError):
        link.receive()


def test_a_frame_that_is_too_long_is_refused_both_ways() -> None:
    link, theirs = pair()
    with theirs, closing(link):
        theirs.sendall((MAX_BODY + 1).to_bytes(4, "little"))
        with pytest.raises(RemoteError, match="is the limit"):
            link.receive()
        with pytest.raises(ValueError, match="is the limit"):
            link.send([bytearray(MAX_BODY + 1)])


def test_a_bell_rings_until_it_is_silenced_however_often_it_was_struck() -> None:
    with closing(Bell()) as bell:
        for _ in range(100_000):
            bell.ring()
        assert select.select([bell], [], [], 0)[0]
        bell.silence()
        assert not select.select([bell], [], [], 0)[0]
        bell.silence()
