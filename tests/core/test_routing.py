"""Which node a request goes to."""

from collections import Counter

from p2p_mesh.core.names import PeerId, RequestId
from p2p_mesh.core.routing import Candidate, rank

R = RequestId("r")
HERE = Candidate(None, slots=2)
A = Candidate(PeerId("a"), slots=2)


def test_here_comes_first() -> None:
    assert rank([A, HERE], R) == (HERE, A)


def test_free_slot_comes_before_a_queue() -> None:
    full = Candidate(None, slots=2, active=2)
    assert rank([full, A], R) == (A, full)


def test_suspect_comes_last() -> None:
    suspect = Candidate(PeerId("b"), slots=8, suspect=True)
    busy = Candidate(PeerId("c"), slots=1, active=5)
    assert rank([suspect, busy], R) == (busy, suspect)


def test_least_loaded_peer_comes_first() -> None:
    busy = Candidate(PeerId("b"), slots=4, active=3)
    assert rank([busy, A], R) == (A, busy)


def test_equal_peers_share_the_requests() -> None:
    peers = [Candidate(PeerId(name), slots=2) for name in "abc"]
    firsts = Counter(rank(peers, RequestId(str(n)))[0].peer for n in range(300))
    assert min(firsts.values()) > 60
