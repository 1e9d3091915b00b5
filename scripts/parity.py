#!/usr/bin/env python
"""Proves that with `--deterministic` the text for a prompt and a seed depends on nothing else.

Each answer is taken alone, in a full batch of requests that come, go and are cancelled, after a
prefix hit, and resumed at a random token by an engine of its own. All must be equal. A part of
them are of two choices, a part follow a JSON schema.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import trio
from benches.figures import Figure
from meshnode_llama_cpp.backend import LlamaCpp
from msgspec.structs import replace
from proofs import main

from p2p_mesh.core.names import RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    InferenceRequest,
    ModelFile,
    Resume,
    Sampling,
    TextPrompt,
    TokenPrompt,
)
from p2p_mesh.serve.backend import Engine, Load
from p2p_mesh.testing.mesh import NoMesh
from p2p_mesh.testing.models import Shape, write_model

SHAPE = Shape(layers=4, width=256, heads=8, kv_heads=4, feed=512, vocabulary=4096, context=1024)
SLOTS = 16
LETTERS = range(260, SHAPE.vocabulary)
"""Tokens that spell something and mark nothing."""
PATIENCE = 120.0
"""Seconds for one answer."""
PART = 0.25
"""Of the pairs have two choices; and so many follow a schema."""
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What was said; how it was cut into deltas is nobody's business."""

    tokens: tuple[int, ...]
    text: str
    finish: str | None

    def resume(self, number: int) -> Resume:
        return Resume(choice=number, tokens=self.tokens, text=len(self.text),
                      finished=self.finish is not None)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    deltas: tuple[Delta, ...]

    def choices(self) -> dict[int, Choice]:
        """Those that began, by their numbers."""
        return {one: self._choice(one) for one in sorted({delta.choice for delta in self.deltas})}

    def _choice(self, number: int) -> Choice:
        deltas = [delta for delta in self.deltas if delta.choice == number]
        return Choice(
            tuple(token for delta in deltas for token in delta.tokens),
            "".join(delta.text for delta in deltas),
            next((delta.finish for delta in deltas if delta.finish), None),
        )

    @property
    def cached(self) -> int:
        usage = self.deltas[-1].usage
        return usage.cached_tokens if usage else 0


NOTHING = Choice((), "", None)


class Tally:
    """What was compared, and what differed."""

    def __init__(self) -> None:
        self.differences = 0
        self.hits = 0

    def compare(self, way: str, number: int, expected: Answer, found: Answer) -> None:
        ours, theirs = expected.choices(), found.choices()
        if ours == theirs:
            return
        self.differences += 1
        for choice in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(choice, NOTHING), theirs.get(choice, NOTHING)
            if one != other:
                self._tell(f"pair {number}, choice {choice}, {way}", one, other)

    def _tell(self, what: str, expected: Choice, found: Choice) -> None:
        same = 0
        for ours, theirs in zip(expected.tokens, found.tokens, strict=False):
            if ours != theirs:
                break
            same += 1
        print(
            f"{what}: {len(expected.tokens)} tokens alone, {len(found.tokens)} so, "
            f"the first {same} equal; {expected.finish} and {found.finish}",
            file=sys.stderr,
        )


async def prove(pairs: int) -> list[Figure]:
    random, tally = Random(1), Tally()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "parity.gguf", shape=SHAPE, endless=True)
        requests = [_request(random, model) for _ in range(pairs)]
        async with _engine(model) as engine, _engine(model) as other:
            answers = [await _answer(engine, request) for request in requests]
            await _in_company(engine, requests, answers, tally)
            for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
                await _after_a_hit(engine, request, (number, answer), tally)
                await _resumed(other, request, (number, answer), tally, random)
    sampled = sum(request.sampling.temperature > 0 for request in requests)
    double = sum(request.choices > 1 for request in requests)
    held = sum(request.schema is not None for request in requests)
    tokens = sum(len(delta.tokens) for answer in answers for delta in answer.deltas)
    print(f"{pairs} pairs: {sampled} sampled, {double} of two choices, {held} held to a schema;")
    print(f"{tokens} tokens; each alone, in a batch of {SLOTS}, after a prefix hit and resumed:")
    print(f"{tally.differences} differences")
    return [
        Figure("parity_pairs", pairs, "pairs", ">=", pairs),
        Figure("parity_prefix_hits", tally.hits, "pairs", ">=", pairs),
        Figure("parity_differences", tally.differences, "answers", "<=", 0),
    ]


@asynccontextmanager
async def _engine(model: ModelFile) -> AsyncIterator[Engine]:
    load = Load(model, context=SHAPE.context, slots=SLOTS, threads=1, deterministic=True)
    async with LlamaCpp().open(load, NoMesh()) as engine:
        yield engine


async def _answer(engine: Engine, request: InferenceRequest) -> Answer:
    with trio.fail_after(PATIENCE):
        async with engine.generate(request) as deltas:
            return Answer(tuple([delta async for delta in deltas]))


async def _in_company(
    engine: Engine, requests: Sequence[InferenceRequest], answers: Sequence[Answer], tally: Tally
) -> None:
    """Each of the requests, while all other slots are taken."""
    async with trio.open_nursery() as nursery:
        for number in range(SLOTS - 1):
            nursery.start_soon(_make_noise, engine, requests[0], Random(1000 + number))
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            tally.compare("in company", number, answer, await _answer(engine, request))
        nursery.cancel_scope.cancel()


async def _make_noise(engine: Engine, like: InferenceRequest, random: Random) -> None:
    """Requests of any length, one after the other; a third of them are cancelled."""
    for number in count():
        prompt = TokenPrompt(tokens=tuple(random.choices(LETTERS, k=random.randint(1, 600))))
        request = replace(
            like, id=RequestId(f"noise-{number}"), prompt=prompt, sampling=_sampling(random),
            max_tokens=random.randint(1, 120), choices=1, schema=None,
        )  # fmt: skip
        patience = random.randint(0, 40) if random.random() < 0.3 else 1000
        async with engine.generate(request) as deltas:
            async for _ in deltas:
                patience -= 1
                if patience < 0:
                    break


async def _after_a_hit(
    engine: Engine, request: InferenceRequest, expected: tuple[int, Answer], tally: Tally
) -> None:
    """The same prompt was read just before."""
    await _answer(engine, replace(request, id=RequestId("before"), max_tokens=1))
    found = await _answer(engine, request)
    tally.hits += found.cached > 1
    tally.compare("after a prefix hit", expected[0], expected[1], found)


async def _resumed(
    engine: Engine,
    request: InferenceRequest,
    expected: tuple[int, Answer],
    tally: Tally,
    random: Random,
) -> None:
    """What was delivered before a random delta, and what another engine goes on with."""
    number, answer = expected
    cut = random.randrange(1, len(answer.deltas))
    before = Answer(answer.deltas[:cut])
    begun = before.choices()
    resume = tuple(one.resume(choice) for choice, one in begun.items())
    rest = await _answer(engine, replace(request, resume=resume))
    found = Answer((*before.deltas, *rest.deltas))
    after = " and ".join(str(len(one.tokens)) for one in begun.values())
    tally.compare(f"resumed after {after} tokens", number, answer, found)


def _request(random: Random, model: ModelFile) -> InferenceRequest:
    return InferenceRequest(
        id=RequestId(f"pair-{random.getrandbits(32)}"),
        model=model.id,
        prompt=_prompt(random),
        sampling=_sampling(random),
        max_tokens=random.randint(8, 64),
        choices=2 if random.random() < PART else 1,
        schema=PERSON if random.random() < PART else None,
    )


def _prompt(random: Random) -> ChatPrompt | TextPrompt | TokenPrompt:
    words = " ".join(f"w{random.randint(0, 3000)}" for _ in range(random.randint(2, 130)))
    match random.randrange(3):
        case 0:
            return TextPrompt(text=words)
        case 1:
            return ChatPrompt(messages=({"role": "user", "content": words},))
        case _:
            return TokenPrompt(tokens=tuple(random.choices(LETTERS, k=random.randint(4, 400))))


def _sampling(random: Random) -> Sampling:
    if random.random() < 0.3:
        return Sampling(temperature=0)
    return Sampling(
        temperature=random.uniform(0.3, 1.5),
        top_k=random.choice((0, 40)),
        top_p=random.choice((1.0, 0.9)),
        min_p=random.choice((0.0, 0.05)),
        repeat_penalty=random.choice((1.0, 1.2)),
        presence_penalty=random.choice((0.0, 0.5)),
        frequency_penalty=random.choice((0.0, -0.3)),
        seed=random.getrandbits(62),
    )


if __name__ == "__main__":
    sys.exit(main(__doc__, "pairs", 100, prove))
