"""Which node a request goes to."""

from collections import Counter

from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import ServedModel
from p2p_mesh.core.routing import Candidate, Serving, catalogue, rank

R = RequestId("r")
M = ModelId("m")
HERE = Candidate(None, M, slots=2)
A = Candidate(PeerId("a"), M, slots=2)


def test_here_comes_first() -> None:
    assert rank([A, HERE], R) == (HERE, A)


def test_free_slot_comes_before_a_queue() -> None:
    full = Candidate(None, M, slots=2, active=2)
    assert rank([full, A], R) == (A, full)


def test_suspect_comes_last() -> None:
    suspect = Candidate(PeerId("b"), M, slots=8, suspect=True)
    busy = Candidate(PeerId("c"), M, slots=1, active=5)
    assert rank([suspect, busy], R) == (busy, suspect)


def test_least_loaded_peer_comes_first() -> None:
    busy = Candidate(PeerId("b"), M, slots=4, active=3)
    assert rank([busy, A], R) == (A, busy)


def test_equal_peers_share_the_requests() -> None:
    peers = [Candidate(PeerId(name), M, slots=2) for name in "abc"]
    firsts = Counter(rank(peers, RequestId(str(n)))[0].peer for n in range(300))
    assert min(firsts.values()) > 60


def serving(peer: str | None, digest: str | None, name: str = "m") -> Serving:
    whole = Digest(digest * 64) if digest else None
    model = ServedModel(id=ModelId(name), digest=whole, context=8, slots=1)
    return Serving(PeerId(peer) if peer else None, model)


def names(*servings: Serving) -> dict[str, list[str | None]]:
    return {name: [one.peer for one in group] for name, group in catalogue(servings).items()}


def test_one_file_has_one_name() -> None:
    found = names(serving("a", "1"), serving("b", "1"), serving("b", "2", name="n"))
    assert found == {"m": ["a", "b"], "n": ["b"]}


def test_name_means_the_file_of_this_node() -> None:
    found = names(serving("a", "1"), serving("b", "1"), serving(None, "2"))
    assert found == {"m": [None], "m@11111111": ["a", "b"], "m@22222222": [None]}


def test_name_means_the_file_that_most_nodes_have() -> None:
    found = names(serving("a", "2"), serving("b", "1"), serving("c", "2"))
    assert found["m"] == ["a", "c"]
    assert names(serving("a", "2"), serving("b", "1"))["m"] == ["b"]  # a tie: everywhere the same


def test_file_without_a_digest_goes_with_the_name() -> None:
    assert names(serving("a", None), serving("b", "1")) == {"m": ["a", "b"]}
