"""A request finds the node that answers it, and the next one if that fails in time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    Announcement,
    ChatPrompt,
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    Held,
    InferenceRequest,
    ModelLoad,
    Query,
    Reply,
    RerankQuery,
    Resources,
    Scores,
    ServedModel,
    Text,
    TextPrompt,
    Usage,
)
from p2p_mesh.errors import (
    BrokenOff,
    ContextExceeded,
    EngineDied,
    Loading,
    MeshError,
    Overloaded,
    RemoteError,
    RequestError,
    Unavailable,
    UnknownModel,
)
from p2p_mesh.journal import Journal
from p2p_mesh.node.answers import Answers

Script = Callable[[], AsyncIterator[Delta]]
LAST = Delta(finish="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))


def request(model: str = "m") -> InferenceRequest:
    return InferenceRequest(
        id=RequestId("r"), model=ModelId(model), prompt=TextPrompt(text="hello")
    )


async def says(*words: str) -> AsyncIterator[Delta]:
    for word in words:
        yield Delta(text=word)
    yield LAST


async def fails(error: MeshError, *before: str) -> AsyncIterator[Delta]:
    for word in before:
        yield Delta(text=word)
    raise error


async def silent() -> AsyncIterator[Delta]:
    nothing: tuple[Delta, ...] = ()
    for delta in nothing:
        yield delta


class Case:
    """Answers over scripted peers; `asked` is who was asked, in order."""

    def __init__(
        self,
        peers: dict[str, Script],
        here: Any = None,
        models: str = "m",
        replies: dict[str, Reply | MeshError] | None = None,
    ) -> None:
        self.asked: list[str] = []
        self.closed: list[str] = []
        self.inventory = Inventory()
        for peer in peers:
            self.inventory.apply(offer(peer, models))
        hosted = {"m": here} if here is not None else {}
        self.answers = Answers(hosted, self.inventory, Journal(), clock=lambda: 7.0)
        self.answers.candidates.is_joining = False
        self._peers = peers
        self._replies = replies or {}
        self.answers.ask, self.answers.look = self._ask, self._look

    @asynccontextmanager
    async def _ask(
        self, peer: PeerId, request: InferenceRequest
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        self.asked.append(peer)
        try:
            yield self._peers[peer]()
        finally:
            self.closed.append(peer)

    async def _look(self, peer: PeerId, query: Query) -> Reply:
        self.asked.append(peer)
        assert query.model == "m"
        return said(self._replies[peer])

    def serve(self, peer: str, **more: Any) -> None:
        """The peer announces its model anew."""
        announcement = offer(peer, "m").announcement
        model = msgspec.structs.replace(announcement.models[0], **more)
        announcement = msgspec.structs.replace(announcement, models=(model,))
        self.inventory.apply(Offer(PeerId(peer), announcement, b"newer", 60.0))

    async def text(self, model: str = "m") -> str:
        async with self.answers.answer(request(model)) as deltas:
            return "".join([delta.text async for delta in deltas])


def said(reply: Reply | MeshError) -> Reply:
    if isinstance(reply, MeshError):
        raise reply
    return reply


def offer(peer: str, models: str) -> Offer:
    announcement = Announcement(
        sequence=(1, 1), issued_at=0, lifetime=60, name=peer, version="1",
        resources=Resources(memory_total=1, memory_free=1, threads=1),
        models=tuple(ServedModel(id=ModelId(name), context=8, slots=2) for name in models.split()),
    )  # fmt: skip
    return Offer(PeerId(peer), announcement, b"", 60.0)


def hosted(script: Script, state: str = "ready", reply: Reply | MeshError | None = None) -> Any:
    @asynccontextmanager
    async def generate(
        request: InferenceRequest, asker: str
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        if state == "loading":
            raise Loading("it is being loaded", retry_after=1.0)
        yield script()

    async def query(query: Query, asker: str) -> Reply:
        assert reply is not None
        return said(reply)

    served = ServedModel(id=ModelId("m"), context=8, slots=2) if state == "ready" else None
    return SimpleNamespace(
        id=ModelId("m"), state=state, slots=2, active=0, queued=0, generate=generate,
        query=query, served=lambda: served,
        load_now=lambda: ModelLoad(model=ModelId("m"), slots=2),
    )  # fmt: skip


async def test_model_here_is_answered_here() -> None:
    case = Case({"a": lambda: says("there")}, here=hosted(lambda: says("here")))
    assert await case.text() == "here"
    assert case.asked == []


async def test_model_elsewhere_is_answered_there() -> None:
    case = Case({"a": lambda: says("a", "b")})
    assert await case.text() == "ab"
    assert case.closed == ["a"]


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("gone"),
        RemoteError("nonsense"),
        EngineDied("killed"),
        Overloaded("full"),
        UnknownModel("unloaded"),
        Loading("soon"),
    ],
)
async def test_failure_before_the_first_delta_goes_on_to_the_next(error: MeshError) -> None:
    case = Case({"a": lambda: fails(error), "b": lambda: fails(error), "c": lambda: says("yes")})
    assert await case.text() == "yes"
    assert case.asked[-1] == "c"
    assert len(set(case.asked)) == len(case.asked)
    assert case.closed == case.asked


WRONG = RequestError("too long", param="messages")


async def test_wrong_request_is_wrong_everywhere() -> None:
    case = Case({name: lambda: fails(WRONG) for name in "abc"})
    with pytest.raises(RequestError):
        await case.text()
    assert len(case.asked) == 2
    assert not case.inventory.is_suspect(PeerId(case.asked[0]))
    here = Case({"a": lambda: says("x")}, here=hosted(lambda: fails(WRONG)))
    with pytest.raises(RequestError):
        await here.text()
    assert here.asked == []


async def test_request_that_is_too_long_here_goes_where_there_is_room() -> None:
    long = ContextExceeded("too long", param="messages")
    peers: dict[str, Script] = {"a": lambda: says("a"), "b": lambda: says("b")}
    case = Case(peers, here=hosted(lambda: fails(long)))
    case.serve("b", context=8192)
    assert await case.text() == "b"
    assert case.asked == ["b"]


async def test_two_files_of_one_name_are_two_models() -> None:
    case = Case({"a": lambda: says("a"), "b": lambda: says("b")})
    for peer, digest in (("a", "1" * 64), ("b", "2" * 64)):
        case.serve(peer, digest=Digest(digest))
    assert [card.id for card in case.answers.models()] == ["m", "m@11111111", "m@22222222"]
    assert await case.text("m@22222222") == "b"
    assert await case.text("m") == "a"


async def test_one_peer_alone_cannot_refuse_a_request() -> None:
    scripts: dict[str, Script] = {"a": lambda: fails(WRONG), "b": lambda: says("yes")}
    for _ in range(2):
        assert await Case(scripts).text() == "yes"
        scripts = {"a": scripts["b"], "b": scripts["a"]}
    with pytest.raises(RequestError):
        await Case({"a": lambda: fails(WRONG)}).text()


async def test_answer_that_ends_before_it_began_is_a_failure() -> None:
    case = Case({"a": silent})
    with pytest.raises(RemoteError, match="before it began"):
        await case.text()


class Scripted:
    """Deltas, and no generator that somebody would have to close."""

    def __init__(self, deltas: list[Delta]) -> None:
        self._deltas = iter(deltas)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        for delta in self._deltas:
            return delta
        raise StopAsyncIteration


async def test_what_comes_after_the_end_is_not_passed_on() -> None:
    said = [Delta(text="a"), LAST, Delta(text="MORE"), LAST]
    assert await Case({"a": lambda: Scripted(said)}).text() == "a"


async def test_choice_that_was_not_asked_for_is_a_peers_fault() -> None:
    said = [Delta(text="a"), Delta(text="b", choice=5)]
    with pytest.raises(BrokenOff, match="not asked for"):
        await Case({"a": lambda: Scripted(said)}).text()


async def test_each_choice_goes_to_its_finish() -> None:
    two = [Delta(text="a"), Delta(text="b", choice=1), Delta(finish="stop"),
           Delta(choice=1, finish="stop", usage=LAST.usage)]  # fmt: skip
    case = Case({"a": lambda: Scripted(two)})
    asked = msgspec.structs.replace(request(), choices=2)
    async with case.answers.answer(asked) as deltas:
        assert [delta async for delta in deltas] == two


async def test_peer_that_lies_at_once_is_passed_over() -> None:
    lies = [Delta(text="a", choice=5)]
    scripts: dict[str, Script] = {"a": lambda: Scripted(lies), "b": lambda: says("yes")}
    for _ in range(2):
        assert await Case(scripts).text() == "yes"
        scripts = {"a": scripts["b"], "b": scripts["a"]}


async def test_failing_peer_is_suspected_until_it_answers() -> None:
    scripts: dict[str, Script] = {"a": lambda: fails(Unavailable("gone"))}
    case = Case(scripts)
    with pytest.raises(Unavailable):
        await case.text()
    assert case.inventory.is_suspect(PeerId("a"))
    assert case.answers.models() == ()
    scripts["a"] = lambda: says("back")
    assert await case.text() == "back"  # the last resort is asked all the same
    assert not case.inventory.is_suspect(PeerId("a"))


async def test_full_peer_is_not_suspected() -> None:
    case = Case({"a": lambda: fails(Overloaded("full", retry_after=2.0))})
    with pytest.raises(Overloaded) as caught:
        await case.text()
    assert caught.value.retry_after == 2.0
    assert not case.inventory.is_suspect(PeerId("a"))


async def test_client_is_told_to_wait_rather_than_that_something_broke() -> None:
    case = Case({"a": lambda: fails(Overloaded("full")), "b": lambda: fails(Unavailable("gone"))})
    with pytest.raises(Overloaded):
        await case.text()


async def test_loading_model_is_asked_for_elsewhere_first() -> None:
    case = Case({"a": lambda: says("there")}, here=hosted(lambda: says("here"), "loading"))
    assert await case.text() == "there"
    alone = Case({}, here=hosted(lambda: says("here"), "loading"))
    with pytest.raises(Loading):
        await alone.text()


async def test_unknown_model_names_those_that_are_there() -> None:
    case = Case({"a": lambda: says("x")}, models="m n")
    with pytest.raises(UnknownModel, match="no model 'gone' here; there are: m, n") as caught:
        await case.text("gone")
    assert caught.value.param == "model"
    with pytest.raises(UnknownModel, match="none yet"):
        await Case({}).text()


async def test_model_on_a_disk_is_one_that_loads() -> None:
    case = Case({"a": silent})
    held = (Held(id=ModelId("big")),)
    announcement = msgspec.structs.replace(offer("a", "m").announcement, held=held)
    case.inventory.apply(Offer(PeerId("a"), announcement, b"newer", 60.0))
    with pytest.raises(Loading, match="on the disk of a node") as caught:
        await case.text("big")
    assert caught.value.retry_after == 5.0
    case.inventory.suspect(PeerId("a"))
    with pytest.raises(UnknownModel):
        await case.text("big")


async def test_model_that_waits_for_nodes_says_so_elsewhere() -> None:
    case = Case({"a": silent})
    held = (Held(id=ModelId("big"), loading=True, waiting=True),)
    announcement = msgspec.structs.replace(offer("a", "m").announcement, held=held)
    case.inventory.apply(Offer(PeerId("a"), announcement, b"newer", 60.0))
    with pytest.raises(Loading, match="big waits for nodes"):
        await case.text("big")


@pytest.mark.parametrize(("loads", "error"), [(True, Loading), (False, UnknownModel)])
async def test_model_that_rests_is_one_that_loads_once_another_has(
    loads: bool, error: type[MeshError]
) -> None:
    case = Case({"a": silent})
    held = (Held(id=ModelId("big"), resting=True), Held(id=ModelId("other"), loading=loads))
    announcement = msgspec.structs.replace(offer("a", "m").announcement, held=held)
    case.inventory.apply(Offer(PeerId("a"), announcement, b"newer", 60.0))
    with pytest.raises(error):
        await case.text("big")


async def test_nothing_is_unknown_while_the_node_joins() -> None:
    case = Case({})
    case.answers.candidates.is_joining = True
    with pytest.raises(Unavailable, match="joining"):
        await case.text()


async def test_before_the_network_is_up_peers_cannot_be_asked() -> None:
    case = Case({"a": lambda: says("x")})
    case.answers.ask = None
    with pytest.raises(Unavailable, match="not connected yet"):
        await case.text()


def test_models_are_the_union() -> None:
    case = Case({"a": silent, "b": silent}, here=hosted(silent), models="m n")
    cards = case.answers.models()
    assert [(card.id, card.nodes, card.created) for card in cards] == [("m", 3, 7), ("n", 2, 7)]
    loading = Case({}, here=hosted(silent, "loading")).answers.models()
    assert [(card.id, card.state) for card in loading] == [("m", "loading")]


def test_own_announcement_counts_once() -> None:
    case = Case({"a": silent}, here=hosted(silent))
    case.answers.candidates.me = PeerId("a")
    assert [card.nodes for card in case.answers.models()] == [1]


PICTURE = ChatPrompt(messages=({"role": "user", "content": [{"type": "image_url"}]},))


async def test_picture_goes_to_a_node_that_sees() -> None:
    case = Case({"a": lambda: says("a"), "b": lambda: says("b")}, here=hosted(lambda: says("me")))
    case.serve("b", capabilities=("generate", "vision"))
    asked = msgspec.structs.replace(request(), prompt=PICTURE)
    async with case.answers.answer(asked) as deltas:
        assert [delta.text async for delta in deltas] == ["b", ""]


async def test_picture_for_the_blind_is_a_wrong_request() -> None:
    case = Case({"a": lambda: says("a")})
    asked = msgspec.structs.replace(request(), prompt=PICTURE)
    with pytest.raises(RequestError, match="m takes no images; no model here does") as caught:
        async with case.answers.answer(asked):
            raise AssertionError
    assert caught.value.param == "messages"
    assert case.asked == []


async def test_model_that_cannot_names_those_that_can() -> None:
    case = Case({"a": silent, "b": silent}, models="m n")
    case.serve("b", id=ModelId("bert"), capabilities=("embed",))
    with pytest.raises(RequestError, match="m makes no embeddings; models that do: bert") as caught:
        await case.answers.query(EMBED)
    assert caught.value.param == "model"
    with pytest.raises(RequestError, match="bert writes no text; models that do: m, n"):
        await case.text("bert")


EMBED = EmbedQuery(model=ModelId("m"), inputs=("x",))
SPELL = DetokenizeQuery(model=ModelId("m"), tokens=(1,))
X = Text(text="x")


async def test_query_is_answered_here_first() -> None:
    case = Case({"a": silent}, here=hosted(silent, reply=X), replies={"a": Text(text="there")})
    assert await case.answers.query(SPELL) == X
    assert case.asked == []


async def test_query_goes_on_to_the_next_node() -> None:
    failing = Unavailable("gone")
    nonsense = Scores(scores=(1.0,), prompt_tokens=1)
    case = Case(dict.fromkeys("abc", silent), replies={"a": failing, "b": nonsense, "c": X})
    assert await case.answers.query(SPELL) == X
    assert case.asked[-1] == "c"


async def test_query_goes_to_a_node_that_can() -> None:
    scores = Scores(scores=(1.0,), prompt_tokens=1)
    case = Case({"a": silent, "b": silent}, replies={"b": scores})
    case.serve("b", capabilities=("rerank",))
    query = RerankQuery(model=ModelId("m"), query="x", documents=("y",))
    assert await case.answers.query(query) == scores


async def test_queries_spread() -> None:
    case = Case(dict.fromkeys("ab", silent), replies={"a": X, "b": X})
    for _ in range(20):
        await case.answers.query(SPELL)
    assert set(case.asked) == {"a", "b"}


async def test_query_that_is_wrong_is_wrong_everywhere() -> None:
    case = Case(dict.fromkeys("abc", silent), replies=dict.fromkeys("abc", WRONG))
    with pytest.raises(RequestError, match="too long"):
        await case.answers.query(SPELL)
    assert len(case.asked) == 2


async def test_reply_to_another_query_is_the_nodes_fault() -> None:
    case = Case({"a": silent}, replies={"a": Scores(scores=(), prompt_tokens=0)})
    with pytest.raises(RemoteError, match="another query"):
        await case.answers.query(SPELL)


async def test_query_before_the_network_is_up() -> None:
    case = Case({"a": silent})
    case.answers.look = None
    with pytest.raises(Unavailable, match="not connected yet"):
        await case.answers.query(SPELL)
