"""The status as Prometheus reads it."""

from __future__ import annotations

from typing import Any

from p2p_mesh.console.metrics import metrics

MODEL: dict[str, Any] = {"id": "moe", "state": "ready", "active": 2, "queued": 1, "measures": {}}
STATUS: dict[str, Any] = {
    "name": "box",
    "version": "1.2",
    "uptime_s": 3.5,
    "resources": {"memory_total": 8_000_000_001, "memory_free": 4, "threads": 2},
    "peers": [{"state": "known"}, {"state": "connected"}, {"state": "known"}],
    "models": [MODEL],
}


def test_the_status_of_a_node_is_told() -> None:
    assert metrics(STATUS).splitlines() == [
        "# TYPE meshnode_info gauge",
        'meshnode_info{name="box",version="1.2"} 1',
        "# TYPE meshnode_uptime_seconds gauge",
        "meshnode_uptime_seconds 3.5",
        "# TYPE meshnode_memory_total_bytes gauge",
        "meshnode_memory_total_bytes 8000000001",
        "# TYPE meshnode_memory_free_bytes gauge",
        "meshnode_memory_free_bytes 4",
        "# TYPE meshnode_peers gauge",
        'meshnode_peers{state="connected"} 1',
        'meshnode_peers{state="known"} 2',
        "# TYPE meshnode_model_ready gauge",
        'meshnode_model_ready{model="moe"} 1',
        "# TYPE meshnode_model_active_requests gauge",
        'meshnode_model_active_requests{model="moe"} 2',
        "# TYPE meshnode_model_queued_requests gauge",
        'meshnode_model_queued_requests{model="moe"} 1',
    ]


def test_what_engines_measure_is_told_with_their_model() -> None:
    one = {**MODEL, "measures": {"expert_hit_rate": 0.63}}
    two = {**MODEL, "id": "b", "state": "loading", "measures": {"expert_hit_rate": 1.0}}
    lines = metrics({**STATUS, "models": [one, two]}).splitlines()
    start = lines.index("# TYPE meshnode_engine_expert_hit_rate gauge")
    assert lines[start + 1 : start + 3] == [
        'meshnode_engine_expert_hit_rate{model="moe"} 0.63',
        'meshnode_engine_expert_hit_rate{model="b"} 1',
    ]
    assert 'meshnode_model_ready{model="b"} 0' in lines


def test_a_name_cannot_forge_a_line() -> None:
    text = metrics({**STATUS, "name": 'a"\n\\b'})
    assert 'meshnode_info{name="a\\"\\n\\\\b",version="1.2"} 1' in text.splitlines()
