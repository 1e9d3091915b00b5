"""A model in three stages, all in one process: what nodes do with streams, a list does here."""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from meshnode_llama_cpp.drawing import Drawing
from meshnode_llama_cpp.frames import Answer, Rejected
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.model import Model
from meshnode_skippy.composing import compose
from meshnode_skippy.compute import StageContext
from meshnode_skippy.coordinating import Coordinator, plan
from meshnode_skippy.embeddings import Embeddings
from meshnode_skippy.frames import OpenStage
from meshnode_skippy.stage import Stage
from meshnode_skippy.wire import Batch, Result, decode, encode_batch, encode_result
from meshnode_skippy.wiring import wiring

from p2p_mesh.core import families
from p2p_mesh.core.gguf import read_header
from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, Sampling, TokenPrompt
from p2p_mesh.serve.backend import Wire
from p2p_mesh.testing.models import Kind, Shape, write_model

CONTEXT, SLOTS = 256, 4
GREEDY = Sampling(temperature=0)


def commands(folder: Path, *, kind: Kind = "llama", layers: int = 6, stages: int = 3,
             **more: Any) -> list[OpenStage]:  # fmt: skip
    """A model cut into stages of equal length: what opens each."""
    path = folder / f"{kind}.gguf"
    model = write_model(path, kind=kind, shape=Shape(layers=layers), endless=True)
    cutting = families.study(read_header(path.read_bytes(), model.size_bytes))
    ends = [cutting.total * (stage + 1) // stages for stage in range(stages)]
    found = []
    for stage, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        recipe = cutting.recipe(start, end)
        target = folder / f"{kind}-{start}-{end}.gguf"
        compose(recipe, metadata=path, sources=[path], target=target)
        feeds_rows = stage == 0 and recipe.entry == "rows"
        found.append(
            OpenStage(
                name="m", path=str(target), metadata=str(path), wiring=wiring(recipe),
                stage=stage, stages=stages, context=CONTEXT, slots=SLOTS, threads=1,
                embeddings=str(path) if feeds_rows else None, window=model.window, **more,
            )
        )  # fmt: skip
    return found


def opened(command: OpenStage) -> Stage:
    model = Model(command.path, name=command.name, progress=lambda _: None, part="layers")
    context = StageContext(model, plan(command), command.wiring)
    drawing = Drawing(context, model, Grammars(model)) if command.is_last else None
    table = Embeddings(command.embeddings) if command.embeddings else None
    return Stage(
        context, slots=command.slots, length=command.context, embeddings=table, drawing=drawing
    )


def joined(parts: list[Any]) -> bytearray:
    return bytearray(b"".join(bytes(part) for part in parts))


class Ring:
    """Stages that pass their frames on when `turn` is called, one hop at a time."""

    def __init__(self, opens: list[OpenStage], *, delay: float = 0.001) -> None:
        """`delay`: seconds of each turn, on a clock of its own."""
        self.stages = [opened(command) for command in opens]
        self._wire: Wire = opens[0].wire
        self._links: list[deque[bytearray]] = [deque() for _ in opens]
        self.now, self._delay = 0.0, delay
        self.coordinator = Coordinator(
            opens[0], self._compute, state_size=self.stages[0].state_size, clock=lambda: self.now
        )
        self.answers: dict[int, list[Delta]] = defaultdict(list)
        self.refused: list[Rejected] = []
        self.epoch = 0
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        self.coordinator.restart(self.epoch)

    def ask(self, number: int, tokens: list[int], most: int = 20, **more: Any) -> None:
        prompt = TokenPrompt(tokens=tuple(tokens))
        self.coordinator.ask(
            number,
            InferenceRequest(
                id=RequestId("r"), model=ModelId("m"), prompt=prompt, max_tokens=most,
                **{"sampling": GREEDY, **more},
            ),
        )  # fmt: skip

    def step(self) -> None:
        for outcome in self.coordinator.step():
            if isinstance(outcome, Answer):
                self.answers[outcome.number].append(outcome.delta)
            else:
                self.refused.append(outcome)

    def turn(self) -> None:
        """The last stage takes first, so that what is on its way stays there for some turns."""
        self.now += self._delay
        for stage in reversed(range(len(self.stages))):
            if self._links[stage]:
                self._take(stage, decode(self._links[stage].popleft()))

    def lose(self) -> None:
        """What is on its way is lost."""
        for link in self._links:
            link.clear()

    def run(self) -> dict[int, list[int]]:
        """The tokens of all answers."""
        for _ in range(20_000):
            if self.coordinator.idle:
                return {number: ids(deltas) for number, deltas in self.answers.items()}
            self.step()
            self.turn()
        raise AssertionError("the ring stands still")

    def _compute(self, batch: Batch) -> None:
        self.stages[0].compute(batch)
        self._links[1].append(joined(encode_batch(batch, self._wire)))

    def _take(self, number: int, come: Batch | Result) -> None:
        if isinstance(come, Result):
            self.coordinator.hear(come)
            return
        stage = self.stages[number]
        stage.check(come)
        if not stage.compute(come):
            return
        if number == len(self.stages) - 1:
            self._links[0].append(joined(encode_result(come, stage.draw(come))))
        else:
            self._links[number + 1].append(joined(encode_batch(come, self._wire)))


def ids(deltas: list[Delta], choice: int = 0) -> list[int]:
    return [token for delta in deltas if delta.choice == choice for token in delta.tokens]


def prompt(number: int, length: int = 20) -> list[int]:
    return [1, *(10 + (7 * number + place * place) % 400 for place in range(length - 1))]
