"""A running node, from the lock on its data directory to the last engine's end.

HTTP first      both ports answer within a second; the rest may take its time
models          each in a task of its own (serve/supervisor.py)
network         libp2p is imported in a thread meanwhile: that takes a second or two
ready           once each named model is ready or given up, and the mesh reached or not
"""

from __future__ import annotations

import gc
import importlib
import os
import secrets
import time
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import trio

from p2p_mesh import state
from p2p_mesh.core.control import read_owner
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import MAX_SEEDS, Ticket, check
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.plans import Wanted
from p2p_mesh.core.records import (
    InferenceRequest,
    ModelFile,
    ModelLoad,
    Query,
    Reply,
    Resources,
    Role,
)
from p2p_mesh.errors import LocalError, SettingsError, UnknownModel
from p2p_mesh.journal import Journal
from p2p_mesh.node.announcements import announce_all
from p2p_mesh.node.answers import Answer, Answers
from p2p_mesh.node.arrival import Arrival
from p2p_mesh.node.artifacts import Artifacts
from p2p_mesh.node.control import Control
from p2p_mesh.node.demand import Demanded
from p2p_mesh.node.extensions import Extensions, Voice
from p2p_mesh.node.listening import is_free
from p2p_mesh.node.members import EXPIRY_CHECK, Announcer, Members
from p2p_mesh.node.membership import STARTING, Membership
from p2p_mesh.node.models import Models
from p2p_mesh.node.plan import Planner
from p2p_mesh.node.port import Port
from p2p_mesh.node.sources import MODELS, Sourced
from p2p_mesh.node.standby import Standby
from p2p_mesh.node.status import status
from p2p_mesh.node.web import open_http
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve import hardware
from p2p_mesh.serve.backend import Limits, Source
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests, Stock
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.settings import Settings

if TYPE_CHECKING:
    from p2p_mesh.net.identity import Identity
    from p2p_mesh.net.mesh import Network

REDEMPTION = "p2p_mesh.net.redemption"

SOURCE_PATIENCE = 5.0
"""Seconds that it waits for what all sources offer at first."""


class Node:
    """One node, for one life."""

    def __init__(
        self,
        settings: Settings,
        stock: Stock,
        tickets: tuple[Ticket, ...],
        plugins: Plugins,
        digests: Digests,
        journal: Journal,
    ) -> None:
        self.settings = settings
        self.plugins = plugins
        self.journal = journal
        self.extensions = Extensions(plugins, journal)
        self.inventory = Inventory()
        memory = self.memory = Memory(hardware.measure(settings.memory_limit), changed=self._change)
        self.artifacts = Artifacts(
            settings,
            Packages(digests.packages, digests),
            Hub(),
            inventory=self.inventory,
            files=lambda: self.models.files(),
            loaded=self._loaded,
            rng=SystemRandom(),
            journal=journal,
            changed=self._change,
        )
        self.port = Port(
            self.inventory,
            memory,
            self.artifacts,
            network=lambda: self.network,
            measured=self.measured,
            is_planned=lambda model: self.models.is_planned(model),
            name=settings.node_name,
            listens=settings.p2p_host if settings.direct else None,
            limits=Limits(settings.threads, settings.gpu_layers),
            journal=journal,
        )
        self.models = Models(
            settings, plugins,
            memory=memory, mesh=self.port, digests=digests, journal=journal, changed=self._change,
        )  # fmt: skip
        self.models.add(stock.models)
        self.models.stand_by(stock.standby)
        self.models.wish(stock.wishes)
        self.hosted = self.models.hosted
        self.sourced = [self._source(one) for one in plugins.sources()]
        self.answers = Answers(self.hosted, self.inventory, journal, time.time)
        self.network: Network | None = None
        self.members: Members | None = None
        self.belonging: state.Belonging | None = None
        self.membership = Membership(settings.data_path, self.inventory, journal, time.time)
        self._known: tuple[str, ...] = ()
        self.role: Role | None = None
        self.api_url = self.console_url = ""
        self.clock = time.time
        self.started = time.time()
        self.demanded = Demanded(
            self.models.wishes, boot=self.started, clock=time.time, journal=journal
        )
        self.answers.counted = self.demanded.count
        self.control = Control(self.models, settings.data_path, journal)
        self.planner = Planner(
            self.port,
            self.inventory,
            plugins.backends(),
            name=settings.node_name,
            find=self.models.find,
            role=lambda: self.role,
            connected=lambda: self.members.connected if self.members else {},
            is_away=self.port.is_away,
            is_attached=lambda model: model in self.hosted and self.hosted[model].load is None,
            held=self.memory.held,
        )
        self._tickets = tickets
        self._token = secrets.token_urlsafe(24)
        self.changed = trio.Event()
        """Set at the next change of what is announced."""
        self._arrival = Arrival(self.inventory, journal)
        plugins.attach(self.port)

    def _source(self, source: Source) -> Sourced:
        return Sourced(
            source, self.hosted, host=self.models.host, journal=self.journal, changed=self._change
        )

    def _change(self) -> None:
        """Something that is announced has changed."""
        self.changed.set()
        self.changed = trio.Event()
        self.demanded.wake()
        self.artifacts.library.wake()

    async def run(self) -> None:
        """Runs until cancelled. Raises SettingsError or LocalError where a port or the data
        directory is not to be had.
        """
        directory = self.settings.data_path
        with state.locked(directory):
            async with trio.open_nursery() as nursery:
                self._check_p2p_port()
                nursery.start_soon(self.extensions.tell)
                await open_http(self, self._token, directory, nursery)
                readers = self.settings.threads
                self.memory.learn(
                    await trio.to_thread.run_sync(hardware.bandwidth, readers),
                    await trio.to_thread.run_sync(hardware.disk, self.models.files()),
                )
                with state.published(directory, self._node_file()):
                    nursery.start_soon(self.models.run)
                    for sourced in self.sourced:
                        nursery.start_soon(sourced.run)
                    await self._live(directory)

    def _check_p2p_port(self) -> None:
        """Raises SettingsError before anything is loaded, where the port is taken already."""
        host, port = self.settings.p2p_host or "0.0.0.0", self.settings.p2p_port
        if port and not is_free(host, port):
            raise SettingsError(f"port {port} is in use; choose another with --p2p-port")

    def _node_file(self) -> state.NodeFile:
        return state.NodeFile(
            pid=os.getpid(),
            name=self.settings.node_name,
            api_url=self.api_url,
            console_url=self.console_url,
            token=self._token,
        )

    def _loaded(self) -> list[ModelFile]:
        """The files of the models that answer now, and of those of which this node is to have a
        shard: the other nodes may need parts of them before any can begin.
        """
        some = (one for one in self.hosted.values() if one.state == "ready" or one.room)
        return [one.load.model for one in some if one.load is not None]

    # What the console asks

    def measured(self) -> Resources:
        return self.models.measured()

    def status(self) -> dict[str, Any]:
        return status(self, time.time())

    async def plan(self, wanted: Wanted) -> dict[str, Any]:
        """How a model would be served, whole or in stages. Raises ModelError and Unavailable."""
        return await self.planner.plan(wanted)

    async def invite(
        self, role: Role, until: int | None, uses: int | None = None, join_by: int | None = None
    ) -> str:
        """A new invite. Raises LocalError where this node cannot make one."""
        if self.network is None:
            raise LocalError(STARTING)
        seeds = self._seeds(self.network)
        return await self.membership.invite(seeds, role, until, uses=uses, join_by=join_by)

    async def invites(self) -> list[dict[str, Any]]:
        """Every invite made here, as plain values. Raises LocalError as `invite`."""
        return await self.membership.invites()

    async def revoke(self, text: str) -> dict[str, Any]:
        """Takes back an invite (its id or token) or a peer (its id): the version of the
        revocation, and who is out by it. Raises LocalError as `invite`.
        """
        return await self.membership.revoke(text)

    # The mesh

    async def _live(self, directory: Path) -> None:
        # libp2p takes seconds to import: in a thread, while both ports answer already.
        net = await trio.to_thread.run_sync(importlib.import_module, "p2p_mesh.net.mesh")
        files = await trio.to_thread.run_sync(importlib.import_module, "p2p_mesh.net.identity")
        identity: Identity = files.load_identity(directory / "node.key")
        name = self.settings.node_name
        redemption = await trio.to_thread.run_sync(importlib.import_module, REDEMPTION)
        belonging = self.belonging = await self.membership.belong(
            self._tickets, identity, name, redemption.redeem
        )
        self._known, revocation = await self.membership.kept()
        self.role = check(belonging.credential, belonging.mesh, time.time()).role
        if self.role == "client" and (self.hosted or self.sourced):
            self.journal.warning(
                "client_role", "This node's invite lets it ask, not serve: the models here answer "
                "this node alone",
            )  # fmt: skip
        members = self.members = Members(
            self.inventory,
            mesh_key=belonging.mesh,
            journal=self.journal,
            clock=time.time,
            answer=self._answer_peer,
            look=self._reply_peer,
            load=self._load,
            heard_load=self.answers.candidates.heard_load,
            forget=self.answers.candidates.forget,
            changed=self._hear,
        )
        members.told = self.membership.heard
        async with net.open_network(
            identity=identity,
            mesh_key=belonging.mesh,
            credential=belonging.credential,
            listen=self._listen(belonging),
            seeds=self._known,
            revocation=revocation,
            handlers=members,
            journal=self.journal,
            clock=time.time,
            rng=SystemRandom(),
        ) as network:
            self.network, members.know = network, network.know
            members.revocation, members.is_out = network.revoked, lambda: network.is_revoked
            self.membership.adopt = network.adopt
            self.membership.connected = network.members()
            self.port.attach(network)
            self.artifacts.attach(network)
            self.control.network = network
            network.control.accept(
                [read_owner(one) for one in self.settings.accept_owner], self.control.obey
            )
            self.answers.candidates.me, self.answers.ask = network.peer_id, network.ask
            self.answers.look = network.query
            self.answers.candidates.rtt = network.rtt
            await self._take_part(network, identity)

    def _listen(self, belonging: state.Belonging) -> tuple[str, ...]:
        host = self.settings.p2p_host or "0.0.0.0"
        port = self.settings.p2p_port
        if port == 0 and is_free(host, belonging.port):
            port = belonging.port
        family = "ip6" if ":" in host else "ip4"
        return (f"/{family}/{host}/tcp/{port}",)

    async def _take_part(self, network: Network, identity: Identity) -> None:
        """Announces, listens and forgets until cancelled; says `ready` when it is."""
        assert self.belonging is not None
        assert self.members is not None
        await self.membership.listens(int(network.addresses()[0].rsplit("/", 1)[1]))
        self.members.redeems = self.membership.redeem
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.membership.run)
            nursery.start_soon(self._expire)
            nursery.start_soon(self.artifacts.library.run)
            voice = Voice(
                identity.key, self.belonging.credential, self.belonging.mesh, time.time,
                lambda: network.revoked,
            )  # fmt: skip
            await self.extensions.open_topics(network, voice, nursery)
            await self.demanded.open(network, voice, nursery)
            if self.role == "member":
                announcer = Announcer(
                    identity.key, self.belonging.credential,
                    name=self.settings.node_name, boot=self.started,
                )  # fmt: skip
                nursery.start_soon(announce_all, self, announcer, network)
                standby = Standby(
                    network.peer_id, self.models, self.inventory, self.demanded.rates, self.journal
                )
                nursery.start_soon(standby.run)
            await self._say_ready(network)

    async def _expire(self) -> None:
        assert self.members is not None
        while True:
            await trio.sleep(EXPIRY_CHECK)
            self.members.expire()

    async def _say_ready(self, network: Network) -> None:
        assert self.belonging is not None
        assert self.members is not None
        if self.belonging.seeds and not network.is_revoked:
            await self._arrival.wait(self.belonging, self.members.connected, network.peer_id)
        self.answers.candidates.is_joining = False
        with trio.move_on_after(SOURCE_PATIENCE):
            for sourced in self.sourced:
                await sourced.heard.wait()
        for hosted in tuple(self.hosted.values()):
            await hosted.wait_settled()
        invite = await self.membership.standing(self._seeds(network))
        self.journal.info(
            "ready", f"{self.settings.node_name} is ready",
            api_url=self.api_url, console_url=self.console_url, peer_id=network.peer_id,
            p2p_addrs=list(self._seeds(network)), mesh_id=self.belonging.id, invite=invite,
            models=[one.id for one in self.hosted.values() if one.state == "ready"],
            waiting=[one.id for one in self.hosted.values() if one.is_waiting],
        )  # fmt: skip
        # What was made until now stays. To look all of it through again takes the collector a
        # tenth of a second, and every answer would wait for that.
        gc.freeze()

    def _hear(self) -> None:
        """A peer came, or announced something new."""
        self._arrival.hear()
        self.artifacts.library.wake()
        assert self.members is not None
        self.demanded.met(self.members.connected)

    def _seeds(self, network: Network) -> tuple[str, ...]:
        addresses = network.addresses()[:MAX_SEEDS]
        return tuple(f"{address}/p2p/{network.peer_id}" for address in addresses)

    def _load(self) -> tuple[ModelLoad, ...]:
        """How busy this node is with each model that it serves."""
        ready = [one for one in self.hosted.values() if one.state == "ready"]
        return tuple(one.load_now() for one in ready[:MODELS])

    def _answer_peer(self, request: InferenceRequest, asker: PeerId) -> Answer:
        return self._own(request.model).generate(request, asker)

    async def _reply_peer(self, query: Query, asker: PeerId) -> Reply:
        return await self._own(query.model).query(query, asker)

    def _own(self, model: ModelId) -> Hosted:
        """Raises UnknownModel; a peer is answered by this node's own models only."""
        if (hosted := self.hosted.get(model)) is None:
            raise UnknownModel(f"{self.settings.node_name} does not serve {model!r}")
        return hosted
