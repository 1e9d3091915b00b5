from p2p_mesh.core.load import FRESH, PeerLoads
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import ModelLoad

PEER, MODEL = PeerId("peer"), ModelId("m")
BUSY = ModelLoad(model=MODEL, slots=4, active=4, queued=7, prefill=900.0)


def test_a_load_is_as_it_was_said() -> None:
    loads = PeerLoads()
    assert loads.ours(PEER, MODEL) == 0
    loads.heard(PEER, [BUSY], 100.0, {MODEL: 3})
    assert loads.of(PEER, MODEL, 101.0) == BUSY
    assert loads.ours(PEER, MODEL) == 3
    assert loads.ours(PEER, ModelId("other")) == 0
    assert loads.of(PEER, ModelId("other"), 101.0) is None


def test_a_stale_queue_is_forgotten_and_the_speed_is_not() -> None:
    loads = PeerLoads()
    loads.heard(PEER, [BUSY], 100.0)
    stale = loads.of(PEER, MODEL, 100.0 + FRESH + 1)
    assert stale == ModelLoad(model=MODEL, slots=4, prefill=900.0)


def test_the_last_word_replaces_the_one_before() -> None:
    loads = PeerLoads()
    loads.heard(PEER, [BUSY], 100.0)
    loads.heard(PEER, [], 101.0)
    assert loads.of(PEER, MODEL, 101.0) is None


def test_a_peer_is_forgotten() -> None:
    loads = PeerLoads()
    loads.heard(PEER, [BUSY], 100.0)
    loads.forget(PEER)
    assert loads.of(PEER, MODEL, 100.0) is None
