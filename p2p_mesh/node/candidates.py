"""Which nodes could answer a question, by all that this one knows of them: what they announce, how
busy they said they are, how far they are, and what they have read of the prompt before. Where
nodes have shards of the model, which of them has the conversation (core/sessions.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import trio

from p2p_mesh.core.chain import Prefixes, links
from p2p_mesh.core.estimates import TokenSizes
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.load import PeerLoads
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import Held, InferenceRequest, ModelLoad, Query
from p2p_mesh.core.routing import Candidate, Serving, catalogue, needs, resumers, whole
from p2p_mesh.core.sessions import Settled, rank, score, session
from p2p_mesh.errors import Loading, MeshError, RequestError, Unavailable, UnknownModel
from p2p_mesh.front.app import ModelCard
from p2p_mesh.serve.capabilities import LACKS
from p2p_mesh.serve.supervisor import Hosted

STARTING = 5.0
"""Seconds after which a client may ask again for a model that is on standby."""

_SENSES = frozenset({"vision", "audio"})


class Candidates:
    """`me` is None, and `rtt` knows nothing, until the network is up."""

    def __init__(
        self,
        hosted: Mapping[str, Hosted],
        inventory: Inventory,
        clock: Callable[[], float],
    ) -> None:
        self.me: PeerId | None = None
        self.rtt: Callable[[PeerId], float | None] = lambda _: None
        self.is_joining = True
        """Whether the mesh may still turn out to have models that are not known yet."""
        self.loads = PeerLoads()
        self.sizes = TokenSizes()
        self._prefixes = Prefixes()
        self._settled = Settled()
        self._hosted = hosted
        self._inventory = inventory
        self._clock = clock
        self._known: dict[ModelId, int] = {}
        self._active: defaultdict[PeerId, Counter[ModelId]] = defaultdict(Counter)

    # What there is

    def models(self) -> tuple[ModelCard, ...]:
        """The models of the whole mesh, by name: ready ones, and those that load here."""
        cards = {name: self._card(name, group) for name, group in self._catalogue().items()}
        for hosted in self._hosted.values():
            model = hosted.id
            if hosted.state == "loading" and model not in cards:
                cards[model] = ModelCard(id=model, state="loading", nodes=0)
        self._known = {name: card.created for name, card in cards.items()}
        return tuple(cards[name] for name in sorted(cards))

    def _card(self, name: ModelId, group: Sequence[Serving]) -> ModelCard:
        model = group[0].model
        masses = [one.model.shard.mass for one in group if one.model.shard is not None]
        return ModelCard(
            id=name,
            created=self._known.get(name, int(self._clock())),
            context=max(one.model.context for one in group),
            digest=next((digest for one in group if (digest := whole(one.model))), None),
            capabilities=model.capabilities,
            nodes=len(group),
            shards=len(masses),
            routing_mass=min(masses, default=None),
        )

    def _catalogue(self, *, suspects: bool = False) -> Mapping[ModelId, tuple[Serving, ...]]:
        """Who serves what now: this node, and the others that are not suspect."""
        servings = [
            Serving(None, served)
            for hosted in self._hosted.values()
            if hosted.state == "ready" and (served := hosted.served()) is not None
        ]
        for offer in self._inventory.offers():
            if offer.peer != self.me and (suspects or not self._inventory.is_suspect(offer.peer)):
                servings += [Serving(offer.peer, model) for model in offer.announcement.models]
        return catalogue(servings)

    # Who answers a question

    def of(
        self, question: InferenceRequest | Query, turn: RequestId, conversation: str = ""
    ) -> Sequence[Candidate]:
        """Who can answer, best first. `conversation` is what the client calls the one that the
        question belongs to. Raises what the client is told where nobody can.
        """
        model, needed = question.model, needs(question)
        servings = self._catalogue(suspects=True).get(model, ())
        able = [one for one in servings if needed <= {*one.model.capabilities}]
        if able:
            return self._ranked(able, question, turn, conversation)
        if model in self._hosted and all(one.peer is not None for one in servings):
            return (Candidate(None, model, slots=0),)  # it loads, or failed: it says so itself
        if servings:
            raise self._unable(model, min((needed - {*one.model.capabilities} for one in servings),
                                          key=len))  # fmt: skip
        raise self.unknown(model)

    def resumers(
        self,
        request: InferenceRequest,
        broken: Candidate,
        failed: Collection[PeerId | None],
        conversation: str = "",
    ) -> Sequence[Candidate]:
        """Who could go on with an answer that `broken` gave, best first: those that have not failed
        it, else those that did and have come back.
        """
        try:
            ranked = self.of(request, request.id, conversation)
        except MeshError:  # nobody has the model any longer
            return ()
        if needs(request) & _SENSES:  # with another projector, images are other rows
            ranked = [one for one in ranked if one.numerics == broken.numerics]
        alike = partial(resumers, broken=broken)
        if found := alike(ranked, failed):
            return found
        back = [one for one in ranked if not one.suspect and one.slots]
        # Of a file whose digest is not known yet, only the node itself has surely the same.
        return alike(back, ()) or [one for one in back if one.peer == broken.peer]

    def is_loading(self, model: ModelId) -> bool:
        """Whether this node, or another, will have the model soon."""
        hosted = self._hosted.get(model)
        if hosted is not None and hosted.state == "loading":
            return True
        return any(held.loading and held.id == model for stock in self._stocks() for held in stock)

    def _ranked(
        self,
        able: Sequence[Serving],
        question: InferenceRequest | Query,
        turn: RequestId,
        conversation: str,
    ) -> Sequence[Candidate]:
        chain: Sequence[bytes] = ()
        tokens = 0
        if isinstance(question, InferenceRequest):
            chain, tokens = links(question), self.sizes.tokens(question.model, question)
        found = [self._candidate(serving, chain) for serving in able]
        if any(one.shard is not None for one in found):
            found = self._placed(found, question, session(question, conversation))
        return rank(found, turn, tokens)

    def _placed(
        self, found: Sequence[Candidate], question: InferenceRequest | Query, key: bytes
    ) -> list[Candidate]:
        """With their scores for a conversation, which are the same whichever node is asked, and
        where it has settled, as far as this node knows.
        """
        shards = {one.digest for one in found if one.shard is not None and one.digest is not None}
        home = self._settled.of(key, shards, trio.current_time())
        weighs = home is None and len(shards) > 1 and isinstance(question, InferenceRequest)
        return [
            replace(
                one,
                score=score(key, peer) if (peer := one.peer or self.me) is not None else b"",
                settled=home is not None and one.digest == home,
                weighs=weighs and one.digest in shards,
            )
            for one in found
        ]

    def _candidate(self, serving: Serving, chain: Sequence[bytes]) -> Candidate:
        peer, model = serving.peer, serving.model
        load, active = self._load(serving)
        return Candidate(
            peer,
            model.id,
            slots=model.slots,
            context=model.context,
            active=active,
            suspect=peer is not None and self._inventory.is_suspect(peer),
            busy=load.active if peer is not None else 0,
            queued=load.queued if peer is not None else 0,
            counted=self.loads.ours(peer, model.id) if peer is not None else 0,
            prefill=load.prefill,
            first=load.first,
            whole=load.whole,
            rtt=(self.rtt(peer) or 0.0) if peer is not None else 0.0,
            cached=self._prefixes.shared(peer, model.digest or model.id, chain),
            digest=model.digest,
            numerics=model.numerics,
            resumable=model.resumable,
            shard=model.shard,
            speed=model.speed,
        )

    def _load(self, serving: Serving) -> tuple[ModelLoad, int]:
        """How busy it is, and how many of this node's own requests it has."""
        peer, model = serving.peer, serving.model
        if peer is None:
            here = self._hosted[model.id]
            return here.load_now(), here.active + here.queued
        load = self.loads.of(peer, model.id, trio.current_time())
        return load or ModelLoad(model=model.id, slots=model.slots), self._sent(peer)[model.id]

    def unknown(self, model: ModelId) -> MeshError:
        if self.is_joining:
            return Unavailable("this node is still joining its mesh", retry_after=1.0)
        if self._is_waiting(model):
            return Loading(
                f"{model} waits for nodes: it is cut into stages, and those that are there cannot "
                f"hold them all; `meshnode status` where it was loaded shows what is missing",
                retry_after=STARTING,
            )
        if self._is_held(model):
            return Loading(
                f"{model} is on the disk of a node, which starts it now that it is wanted",
                retry_after=STARTING,
            )
        names = ", ".join(card.id for card in self.models()) or "none yet"
        return UnknownModel(f"there is no model {model!r} here; there are: {names}", param="model")

    def _is_held(self, model: ModelId) -> bool:
        """Whether a node, perhaps this one, has the model and will serve it, now that it is
        wanted, or once it has loaded another.
        """
        return any(
            _is_named(held, model) and (not held.resting or any(one.loading for one in stock))
            for stock in self._stocks()
            for held in stock
        )

    def _is_waiting(self, model: ModelId) -> bool:
        """Whether a node would serve it in stages, and others are missing."""
        return any(
            one.waiting and _is_named(one, model) for stock in self._stocks() for one in stock
        )

    def _stocks(self) -> Iterator[tuple[Held, ...]]:
        """What is on the disks of nodes that answer."""
        for offer in self._inventory.offers():
            if not self._inventory.is_suspect(offer.peer):
                yield offer.announcement.held

    def _unable(self, model: ModelId, lacks: frozenset[str]) -> RequestError:
        lack = min(lacks)
        others = [card.id for card in self.models() if lack in card.capabilities]
        advice = f"models that do: {', '.join(others)}" if others else "no model here does"
        param = "messages" if lack in _SENSES else "model"
        return RequestError(f"{model} {LACKS[lack]}; {advice}", param=param)

    # What is learned from asking

    @contextmanager
    def counted(self, peer: PeerId, model: ModelId) -> Iterator[None]:
        """A question of ours is under way there."""
        self._active[peer][model] += 1
        try:
            yield
        finally:
            self._active[peer][model] -= 1
            if not self._active[peer][model]:
                del self._active[peer][model]
                if not self._active[peer]:
                    del self._active[peer]

    def _sent(self, peer: PeerId) -> Counter[ModelId]:
        """How many questions of ours are under way there, for each model."""
        return self._active.get(peer, Counter())

    def heard_load(self, peer: PeerId, loads: Sequence[ModelLoad]) -> None:
        self.loads.heard(peer, loads, trio.current_time(), dict(self._sent(peer)))

    def has_read(self, candidate: Candidate, request: InferenceRequest) -> None:
        """The node has the prompt in its cache, probably."""
        key = candidate.digest or candidate.model
        self._prefixes.remember(candidate.peer, key, links(request))

    def settle(self, request: InferenceRequest, conversation: str, candidate: Candidate) -> None:
        """The conversation has begun there, or goes on where it had settled."""
        if candidate.digest is not None and (candidate.weighs or candidate.settled):
            key = session(request, conversation)
            self._settled.settle(key, candidate.digest, trio.current_time())

    def handed(
        self, request: InferenceRequest, conversation: str, giver: Candidate, peer: str
    ) -> Candidate | None:
        """`giver` says that the shard of that peer holds more of what the prompt needs: the one to
        ask instead, where it can begin soon enough; None: the giver again.
        """
        try:
            ranked = self.of(request, request.id, conversation)
            told = [one for one in ranked if one.weighs and (one.peer or self.me) == peer]
            if not told or told[0].peer == giver.peer:
                return None
            self.settle(request, conversation, told[0])
            first = self.of(request, request.id, conversation)[0]
        except MeshError:  # nobody has the model any longer
            return None
        return first if first.peer == told[0].peer else None

    def forget(self, peer: PeerId) -> None:
        """The peer is gone; what it had in its cache too."""
        self.loads.forget(peer)
        self._prefixes.forget(peer)


def _is_named(held: Held, name: ModelId) -> bool:
    """Whether a name means this file: its id alone, or with the first digits of its digest."""
    return name == held.id or bool(held.digest and name == f"{held.id}@{held.digest[:8]}")
