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
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from p2p_mesh import state
from p2p_mesh.console.app import create_app as create_console
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import MAX_SEEDS, Ticket, check
from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import InferenceRequest, ModelFile, Query, Reply, Resources, Role
from p2p_mesh.errors import LocalError, SettingsError, UnknownModel
from p2p_mesh.front.app import create_app as create_front
from p2p_mesh.http.guard import Policy
from p2p_mesh.http.server import EVERYWHERE, serve
from p2p_mesh.journal import Journal
from p2p_mesh.node.answers import Answer, Answers
from p2p_mesh.node.extensions import Extensions, Voice
from p2p_mesh.node.listening import is_free
from p2p_mesh.node.loads import load
from p2p_mesh.node.members import EXPIRY_CHECK, Announcer, Members, announce
from p2p_mesh.node.port import Port
from p2p_mesh.node.sources import Sourced
from p2p_mesh.node.status import status
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve import hardware
from p2p_mesh.serve.backend import Load, Offer, Source
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.store import Digests
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.settings import Settings

if TYPE_CHECKING:
    from p2p_mesh.net.identity import Identity
    from p2p_mesh.net.mesh import Network

JOIN_PATIENCE = 10.0
"""Seconds that `ready` waits for the mesh of an invite; after that the node goes on trying."""

SNAPSHOT_PATIENCE = 1.0
"""Seconds that it waits, once connected, for the first announcement of another."""

SOURCE_PATIENCE = 5.0
"""Seconds that it waits for what all sources offer at first."""


class Node:
    """One node, for one life."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[ModelFile],
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
        self._resources = hardware.measure(settings.memory_limit)
        self._memory = Memory(self._resources)
        self.port = Port(
            self.inventory, self._memory, lambda: self.hosted.values(), lambda: self.network
        )
        self.hosted: dict[str, Hosted] = {
            model.id: self._host(load(model, settings)) for model in models
        }
        self.sourced = [self._source(one) for one in plugins.sources()]
        self.answers = Answers(self.hosted, self.inventory, journal, time.time)
        self.network: Network | None = None
        self.members: Members | None = None
        self.belonging: state.Belonging | None = None
        self.inviter: state.Inviter | None = None
        self.role: Role | None = None
        self.api_url = self.console_url = ""
        self.started = time.time()
        self._tickets = tickets
        self._digests = digests
        self._token = secrets.token_urlsafe(24)
        self._changed = trio.Event()
        self._news = trio.Event()

    def _host(self, wanted: Load | Offer) -> Hosted:
        return Hosted(
            wanted,
            self.plugins.backends(),
            memory=self._memory,
            mesh=self.port,
            journal=self.journal,
            rng=SystemRandom(),
            changed=self._change,
        )

    def _source(self, source: Source) -> Sourced:
        return Sourced(
            source, self.hosted, host=self._host, journal=self.journal, changed=self._change
        )

    def _change(self) -> None:
        """Something that is announced has changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Runs until cancelled. Raises SettingsError or LocalError where a port or the data
        directory is not to be had.
        """
        directory = self.settings.data_path
        with state.locked(directory):
            async with trio.open_nursery() as nursery:
                self._check_p2p_port()
                nursery.start_soon(self.extensions.tell)
                await self._open_http(nursery, directory)
                with state.published(directory, self._node_file()):
                    for hosted in self.hosted.values():
                        nursery.start_soon(hosted.run)
                        nursery.start_soon(self._learn_digest, hosted)
                    for sourced in self.sourced:
                        nursery.start_soon(sourced.run)
                    await self._live(directory)

    def _check_p2p_port(self) -> None:
        """Raises SettingsError before anything is loaded, where the port is taken already."""
        host, port = self.settings.p2p_host or "0.0.0.0", self.settings.p2p_port
        if port and not is_free(host, port):
            raise SettingsError(f"port {port} is in use; choose another with --p2p-port")

    # HTTP

    async def _open_http(self, nursery: trio.Nursery, directory: Path) -> None:
        settings, policy = self.settings, self._policy(directory)
        host = EVERYWHERE if settings.listen else "localhost"
        front = create_front(
            self.answers,
            policy=policy,
            clock=time.time,
            random=SystemRandom(),
            journal=self.journal,
            remote_media=settings.remote_media,
        )
        bind = partial(serve, host=host, journal=self.journal)
        port = await nursery.start(partial(bind, front, port=settings.port, flag="--port"))
        self.api_url = f"http://localhost:{port}/v1"
        page = create_console(
            self, policy=policy, token=self._token, routes=self.plugins.routes(),
            journal=self.journal,
        )  # fmt: skip
        port = await nursery.start(partial(bind, page, port=settings.console, flag="--console"))
        self.console_url = f"http://localhost:{port}"
        self.journal.info("api_ready", f"The API answers on {self.api_url}", api_url=self.api_url)

    def _policy(self, directory: Path) -> Policy:
        settings, key = self.settings, self.settings.api_key
        if settings.listen and not key:
            key, is_new = state.api_key(directory)
            if is_new:
                self.journal.info(
                    "api_key", f"The API key, shown once and kept in {directory}: {key}",
                    api_key=key,
                )  # fmt: skip
        return Policy(
            listen=settings.listen,
            api_key=key or None,
            allow_hosts=frozenset(settings.allow_host),
            allow_origins=frozenset(settings.allow_origin),
        )

    def _node_file(self) -> state.NodeFile:
        return state.NodeFile(
            pid=os.getpid(),
            name=self.settings.node_name,
            api_url=self.api_url,
            console_url=self.console_url,
            token=self._token,
        )

    # What the console asks

    def measured(self) -> Resources:
        """What this node has to work with now; a server elsewhere is no device of it."""
        devices = {
            about.device
            for one in self.hosted.values()
            if one.load is not None and (about := one.description)
        }
        with suppress(OSError):  # no descriptor is free: what was measured last will do
            self._resources = hardware.measure(self.settings.memory_limit)
        now = self._resources
        return msgspec.structs.replace(now, device=", ".join(sorted(devices)) or now.device)

    def status(self) -> dict[str, Any]:
        return status(self, time.time())

    async def invite(self, role: Role, until: int | None) -> str:
        """A new invite. Raises LocalError where this node cannot make one."""
        if self.inviter is None or self.network is None:
            raise LocalError("the node is still starting; try again in a second")
        return self.inviter.make(self._seeds(self.network), role, until)

    # The mesh

    async def _live(self, directory: Path) -> None:
        # libp2p takes seconds to import: in a thread, while both ports answer already.
        net = await trio.to_thread.run_sync(importlib.import_module, "p2p_mesh.net.mesh")
        files = await trio.to_thread.run_sync(importlib.import_module, "p2p_mesh.net.identity")
        identity: Identity = files.load_identity(directory / "node.key")
        name = self.settings.node_name
        belonging = await trio.to_thread.run_sync(
            state.belong, directory, self._tickets, identity.public_key, name, time.time()
        )
        self.belonging = belonging
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
            changed=self._hear,
        )
        async with net.open_network(
            identity=identity,
            mesh_key=belonging.mesh,
            credential=belonging.credential,
            listen=self._listen(belonging),
            seeds=belonging.seeds,
            handlers=members,
            journal=self.journal,
            clock=time.time,
            rng=SystemRandom(),
        ) as network:
            self.network, members.know = network, network.know
            self.port.attach(network)
            self.answers.me, self.answers.ask = network.peer_id, network.ask
            self.answers.look = network.query
            await self._take_part(network, identity, directory)

    def _listen(self, belonging: state.Belonging) -> tuple[str, ...]:
        host = self.settings.p2p_host or "0.0.0.0"
        port = self.settings.p2p_port
        if port == 0 and is_free(host, belonging.port):
            port = belonging.port
        family = "ip6" if ":" in host else "ip4"
        return (f"/{family}/{host}/tcp/{port}",)

    async def _take_part(self, network: Network, identity: Identity, directory: Path) -> None:
        """Announces, listens and forgets until cancelled; says `ready` when it is."""
        assert self.belonging is not None
        assert self.members is not None
        await self._remember_port(network, directory)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            voice = Voice(identity.key, self.belonging.credential, self.belonging.mesh, time.time)
            await self.extensions.open_topics(network, voice, nursery)
            if self.role == "member":
                announcer = Announcer(
                    identity.key, self.belonging.credential,
                    name=self.settings.node_name, boot=self.started,
                )  # fmt: skip
                nursery.start_soon(
                    announce,
                    partial(network.publish, "inventory"),
                    partial(self._next_announcement, announcer, network),
                    lambda: self._changed,
                    self.journal,
                )
            await self._say_ready(network)

    def _next_announcement(self, announcer: Announcer, network: Network) -> bytes:
        served = [found for one in self.hosted.values() if (found := one.served()) is not None]
        envelope = announcer.make(served, self.measured(), network.addresses(), time.time())
        assert self.members is not None
        self.members.keep(envelope)
        return envelope

    async def _expire(self) -> None:
        assert self.members is not None
        while True:
            await trio.sleep(EXPIRY_CHECK)
            self.members.expire()

    async def _remember_port(self, network: Network, directory: Path) -> None:
        assert self.belonging is not None
        port = int(network.addresses()[0].rsplit("/", 1)[1])
        if port != self.belonging.port:
            self.belonging = msgspec.structs.replace(self.belonging, port=port)
            await trio.to_thread.run_sync(state.remember, directory, self.belonging)
        self.inviter = state.Inviter(directory, self.belonging)

    async def _say_ready(self, network: Network) -> None:
        assert self.belonging is not None
        assert self.inviter is not None
        if self.belonging.seeds:
            await self._reach()
        self.answers.is_joining = False
        with trio.move_on_after(SOURCE_PATIENCE):
            for sourced in self.sourced:
                await sourced.heard.wait()
        for hosted in tuple(self.hosted.values()):
            await hosted.wait_settled()
        invite = self.inviter.standing(self._seeds(network))
        self.journal.info(
            "ready", f"{self.settings.node_name} is ready",
            api_url=self.api_url, console_url=self.console_url, peer_id=network.peer_id,
            p2p_addrs=list(self._seeds(network)), mesh_id=self.belonging.id, invite=invite,
            models=[one.id for one in self.hosted.values() if one.state == "ready"],
        )  # fmt: skip
        # What was made until now stays. To look all of it through again takes the collector a
        # tenth of a second, and every answer would wait for that.
        gc.freeze()

    def _hear(self) -> None:
        """A peer came, or announced something new."""
        self._news.set()
        self._news = trio.Event()

    async def _reach(self) -> None:
        """Returns when the mesh was reached and has said what it offers, or patience is over."""
        assert self.members is not None
        assert self.belonging is not None
        seeds = [seed.partition("/p2p/")[0] for seed in self.belonging.seeds]
        self.journal.info("joining", f"Looking for the mesh {self.belonging.name}")
        with trio.move_on_after(JOIN_PATIENCE):
            while not self.members.connected:
                await self._news.wait()
            with trio.move_on_after(SNAPSHOT_PATIENCE):
                while not any(offer.peer != self.answers.me for offer in self.inventory.offers()):
                    await self._news.wait()
        if not self.members.connected:
            self.journal.warning(
                "mesh_unreached",
                f"Nobody of the mesh {self.belonging.name} answers at {', '.join(seeds)}: is that "
                "node running, and its port open to this machine? This node goes on trying",
                addresses=list(seeds),
            )

    def _seeds(self, network: Network) -> tuple[str, ...]:
        addresses = network.addresses()[:MAX_SEEDS]
        return tuple(f"{address}/p2p/{network.peer_id}" for address in addresses)

    def _answer_peer(self, request: InferenceRequest) -> Answer:
        return self._own(request.model).generate(request)

    async def _reply_peer(self, query: Query) -> Reply:
        return await self._own(query.model).query(query)

    def _own(self, model: ModelId) -> Hosted:
        """Raises UnknownModel; a peer is answered by this node's own models only."""
        if (hosted := self.hosted.get(model)) is None:
            raise UnknownModel(f"{self.settings.node_name} does not serve {model!r}")
        return hosted

    # Beside

    async def _learn_digest(self, hosted: Hosted) -> None:
        if hosted.load is None or hosted.digest is not None:
            return
        path = hosted.load.model.path
        try:
            hosted.digest = await self._digests.of(Path(path))
        except OSError as error:
            self.journal.warning(
                "digest_failed", f"{path} cannot be read: {error.strerror}",
                model=hosted.id, reason=str(error),
            )  # fmt: skip
            return
        self._change()
