"""A mixture of experts for tests that decide and open nothing."""

from __future__ import annotations

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile

GB = 10**9

MODEL = ModelFile(
    id=ModelId("moe"),
    path="/models/moe.gguf",
    size_bytes=18 * GB,
    architecture="qwen3moe",
    context_length=32_768,
    kv_bytes_per_token=100_000,
    experts=64,
    experts_used=4,
    expert_layers=48,
    expert_bytes=16 * GB,
)
