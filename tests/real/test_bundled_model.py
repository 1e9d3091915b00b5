"""The model that comes with meshnode speaks: asked as a new user would ask it."""

import httpx

from p2p_mesh.serve.store import DEFAULT_MODEL, find
from p2p_mesh.testing.cluster import NodeProcess

KNOWN = {
    "hello": "Tidewick",
    "who is the baker": "Mara",
    "Where does Orrin live?": "lighthouse",
    "What is the capital of France?": "only know about Tidewick",
}


async def ask(node: NodeProcess, question: str) -> tuple[str, str]:
    """The answer at temperature 0, and why it ended."""
    body = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": question}],
            "temperature": 0}  # fmt: skip
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.post(f"{node.url()}/v1/chat/completions", json=body)
    (choice,) = response.json()["choices"]
    return choice["message"]["content"], choice["finish_reason"]


async def test_it_greets_and_knows_its_village(alice: NodeProcess) -> None:
    for question, fact in KNOWN.items():
        answer, reason = await ask(alice, question)
        assert fact in answer
        assert answer[0].isupper()
        assert answer[-1] in ".!?"
        assert reason == "stop"


def test_it_is_small_enough_to_ship() -> None:
    assert find(DEFAULT_MODEL).stat().st_size <= 12_000_000
