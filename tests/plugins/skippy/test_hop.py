from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from meshnode_skippy.direct import KEY
from meshnode_skippy.frames import Dial, Dialled, Listen, Listening, Pong, Unlinked, reports
from meshnode_skippy.hop import Hop
from meshnode_skippy.link import Bell, Link

HOSTS = ("127.0.0.1",)


class Worker:
    """A hop, and what its node sees of it."""

    def __init__(self) -> None:
        self.node, theirs = socket.socketpair()
        self.link, self.bell = Link(theirs), Bell()
        self._told = bytearray()
        self.hop = Hop(self.link, self.bell, self._told.extend)

    def told(self) -> list[object]:
        found = list(reports().feed(bytes(self._told)))
        self._told.clear()
        return list(found)

    def close(self) -> None:
        self.hop.close()
        self.node.close()
        self.link.close()
        self.bell.close()


@pytest.fixture
def pair() -> Iterator[tuple[Worker, Worker]]:
    with closing(Worker()) as one, closing(Worker()) as other:
        yield one, other


def link(one: Worker, other: Worker) -> None:
    key = os.urandom(KEY)
    other.hop.listen(Listen(key))
    (listening,) = other.told()
    assert isinstance(listening, Listening)
    one.hop.dial(Dial(HOSTS, listening.port, key))
    assert one.told() == [Dialled(True)]
    assert other.hop.wait() == []  # it was let in


def test_frames_go_through_the_node_where_nothing_else_was_made(
    pair: tuple[Worker, Worker],
) -> None:
    one, _ = pair
    one.hop.send([b"abc"])
    assert one.node.recv(100) == b"\x03\0\0\0abc"
    one.node.sendall(b"\x02\0\0\0xy")
    assert one.hop.wait() == [b"xy"]


def test_a_direct_link_carries_frames_past_the_nodes(pair: tuple[Worker, Worker]) -> None:
    one, other = pair
    link(one, other)
    one.hop.send([b"abc"])
    assert other.hop.wait() == [b"abc"]
    other.node.sendall(b"\x02\0\0\0xy")  # the node may still say something
    assert other.hop.wait() == [b"xy"]


def test_a_link_that_breaks_is_told_on_both_sides_and_the_node_takes_over(
    pair: tuple[Worker, Worker],
) -> None:
    one, other = pair
    link(one, other)
    other.hop._drop_in()
    while not (told := one.told()):
        one.hop.send([b"lost"])
    assert isinstance(told[0], Unlinked)
    one.node.setblocking(False)
    one.hop.send([b"of no use"])
    with pytest.raises(BlockingIOError):
        one.node.recv(100)
    link(one, other)
    one.hop.dial(Dial())
    assert one.told() == [Dialled(False)]
    assert other.hop.wait() == []
    assert isinstance(other.told()[0], Unlinked)


def test_a_new_link_takes_the_place_of_the_old_one(pair: tuple[Worker, Worker]) -> None:
    one, other = pair
    link(one, other)
    link(one, other)
    one.hop.send([b"abc"])
    assert other.hop.wait() == [b"abc"]
    assert other.told() == []


def test_a_worker_says_that_it_lives(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    one.hop.pong()
    assert one.told() == [Pong()]


def test_who_cannot_be_reached_is_told(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    one.hop.dial(Dial(HOSTS, 1, os.urandom(KEY)))
    assert one.told() == [Dialled(False)]


def test_a_bell_ends_the_wait_and_so_does_the_end_of_the_node(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    one.bell.ring()
    assert one.hop.wait() == []
    assert one.hop.wait(0) == []
    one.node.close()
    with pytest.raises(EOFError):
        one.hop.wait()
