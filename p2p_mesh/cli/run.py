"""`meshnode run`: a node in the foreground."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from typing import Any, TextIO, cast, get_args

import click
import trio

from p2p_mesh import settings as settings_module
from p2p_mesh import state
from p2p_mesh.cli import output
from p2p_mesh.core.costs import Wire
from p2p_mesh.core.experts.assignment import MIN_MASS
from p2p_mesh.core.invite import Ticket, read_token
from p2p_mesh.core.records import KvType
from p2p_mesh.errors import MeshError, SettingsError
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.node import loads
from p2p_mesh.node.node import Node
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve import store
from p2p_mesh.serve.store import Stock
from p2p_mesh.settings import Settings

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STOP_SECONDS = 2.5
"""After a signal, everything has this long to end by itself."""

FILES = 8192
"""Open files that a node asks for."""

_HELP = """Start a node: serve models, join a mesh, answer on a local OpenAI API.

With no --model and no --endpoint it serves the small bundled model, which shows that things work
and knows nothing. Every option can also stand in the settings file (max_memory = 8) or in the
environment (MESHNODE_MAX_MEMORY=8); --join and --api-key take @FILE, or - for standard input, so
that they need not stand in a process list. The key of an endpoint is MESHNODE_ENDPOINT_KEY in the
environment; with several endpoints, MESHNODE_ENDPOINT_KEY_1, _2 and so on.

\b
Examples:
  meshnode run
  meshnode run --model ~/models/qwen3-8b-q4_k_m.gguf --ctx 8192
  meshnode run --standby ~/models
  meshnode run --model ~/models/qwen3-32b-q4_k_m.gguf --split
  meshnode run --model ~/models/qwen3-30b-a3b-q4_k_m.gguf --flash --max-memory 8
  meshnode run --model ~/models/qwen3-30b-a3b-q4_k_m.gguf --shards --max-memory 12
  meshnode run --endpoint http://localhost:11434
  meshnode run --join @token.txt
  meshnode run --client --join - < token.txt
  meshnode run --port 8080 --console 8081 --data-dir ./second
"""


@click.command("run", help=_HELP)
@click.option(
    "--model",
    multiple=True,
    metavar="REF",
    type=click.Path(),
    help="A GGUF file, a package (a folder, or hf://ns/repo@rev), or the name of a bundled model. "
    "Repeatable.",
)
@click.option(
    "--join",
    multiple=True,
    metavar="TOKEN",
    help="Join the mesh of this invite. Repeatable: more ways into the same mesh.",
)
@click.option(
    "--standby",
    multiple=True,
    metavar="REF",
    type=click.Path(),
    help="A GGUF file, or a folder of them, to serve when the mesh wants it. Repeatable.",
)
@click.option("--client", is_flag=True, default=None, help="Serve nothing; only ask.")
@click.option("--port", metavar="N", help="Port of the OpenAI API.  [default: 9337]")
@click.option("--console", metavar="N", help="Port of status and management.  [default: 3131]")
@click.option("--p2p-port", metavar="N", help="Port for other nodes.  [default: any free one]")
@click.option(
    "--p2p-host",
    metavar="ADDR",
    help="Address to listen on for other nodes.  [default: all interfaces]",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Where identity and mesh are kept.  [default: ~/.local/share/meshnode]",
)
@click.option("--name", help="What others call this node.  [default: the host's name]")
@click.option("--ctx", metavar="N", help="Context of each request, in tokens.")
@click.option("--threads", metavar="N", help="Threads of each engine.")
@click.option("--max-memory", metavar="GB", help="What all models may take together.")
@click.option("--parallel", metavar="N", help="Requests that each model answers at a time.")
@click.option(
    "--kv-type",
    type=click.Choice(get_args(KvType)),
    help="How the KV cache is stored.  [default: f16]",
)
@click.option("--gpu-layers", metavar="N", help="Layers on GPUs.  [default: as many as fit]")
@click.option(
    "--deterministic",
    is_flag=True,
    default=None,
    help="The text for a prompt and a seed is the same whatever else the node does; slower.",
)
@click.option(
    "--speculation/--no-speculation",
    default=None,
    help="Guess tokens and verify them; the answer is the same.  [default: where it pays]",
)
@click.option(
    "--draft",
    metavar="REF",
    type=click.Path(),
    help="A small model of the same vocabulary that guesses tokens for the one --model.",
)
@click.option(
    "--mmproj",
    metavar="FILE",
    type=click.Path(),
    help="The projector of the one --model, for images or sounds.",
)
@click.option(
    "--split",
    is_flag=True,
    default=None,
    help="Cut models into stages over several nodes, even where they fit whole.",
)
@click.option(
    "--flash",
    is_flag=True,
    default=None,
    help="Read the experts of models from the disk as they are wanted, even where they fit whole.",
)
@click.option(
    "--shards",
    is_flag=True,
    default=None,
    help="Serve models with a part of their experts, and other nodes with others, even where they "
    "fit whole.",
)
@click.option(
    "--min-mass",
    type=float,
    metavar="SHARE",
    help="The least share of the routing that an expert shard here keeps, 0 to 1.  [default: "
    f"{MIN_MASS}]",
)
@click.option(
    "--stages",
    metavar="FILE",
    type=click.Path(),
    help="Which node holds which layers of one model: a file of `meshnode plan --save`.",
)
@click.option("--max-rtt", metavar="MS", help="Round trip to a node with a stage.  [default: 80]")
@click.option(
    "--wire",
    type=click.Choice(get_args(Wire)),
    help="How activations travel between stages; f32 is exact.  [default: f32]",
)
@click.option(
    "--direct/--no-direct",
    default=None,
    help="Stages reach one another at ports of their own, past the nodes.  [default: direct]",
)
@click.option(
    "--artifacts",
    type=click.Choice(["auto", "on", "off"]),
    help="Serve parts of models to members, and fetch them.  [default: auto, which is on]",
)
@click.option(
    "--share",
    multiple=True,
    metavar="REF",
    type=click.Path(),
    help="Serve the parts of this model to members, also while it is not loaded. Repeatable.",
)
@click.option("--max-disk", metavar="GB", help="What fetched parts of models may take together.")
@click.option(
    "--fetch-allow",
    multiple=True,
    metavar="MODEL",
    help="Fetch this model when demand alone wants it: a name, pattern or digest. Repeatable.",
)
@click.option(
    "--endpoint",
    multiple=True,
    metavar="URL",
    help="Offer the models of this OpenAI-compatible server. Repeatable.",
)
@click.option(
    "--remote-media",
    is_flag=True,
    default=None,
    help="Fetch images that requests link to; never from private addresses.",
)
@click.option(
    "--listen",
    is_flag=True,
    default=None,
    help="HTTP on all interfaces; every call then needs the API key.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    help="Demand this key.  [default: with --listen, one is made, shown once, and kept]",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="HOST",
    help="Another name by which clients may call this machine. Repeatable.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A web origin whose pages may call the API. Repeatable.",
)
@click.option(
    "--accept-owner",
    multiple=True,
    metavar="PUBKEY",
    help="Obey this owner: list, load and unload models, and stop. Repeatable.",
)
@click.option(
    "--log-format", type=click.Choice(["pretty", "json"]), help="How to log.  [default: pretty]"
)
def command(**flags: Any) -> int:
    settings = settings_module.load(flags)
    sink = output.Sink(sys.stdout)
    form = output.json_log if settings.log_format == "json" else output.pretty_log
    journal = Journal(form(cast("TextIO", sink)))
    try:
        return _run(settings, journal)
    except MeshError as error:
        if settings.log_format == "json":
            journal.error("failed", str(error))
        raise
    finally:
        sink.close()


def _run(settings: Settings, journal: Journal) -> int:
    tickets = tuple(read_token(token) for token in settings.join)
    digests = store.Digests(settings_module.cache_dir() / "digests.json")
    is_client = any(ticket.invite.role == "client" for ticket in tickets)
    stock = store.stock(
        _references(settings, is_client=is_client),
        settings.standby,
        digests,
        may_wish=_has_mesh(settings, tickets),
    )
    for reference in settings.share:
        store.find(reference, digests.packages)
    loads.check_stages(settings, (*stock.models, *stock.standby))
    for note in stock.notes:
        journal.warning("standby_left_out", note)
    if settings.client and not _has_mesh(settings, tickets):
        journal.warning(
            "nothing_served", "This node serves nothing and starts a mesh of its own. To ask "
            "another mesh, add --join TOKEN; to have models here, let a node join that has some",
        )  # fmt: skip
    plugins = Plugins()
    plugins.load()
    plugins.ask(settings)
    _allow_files()
    with bare():
        trio.run(_until_signal, settings, stock, tickets, plugins, digests, journal)
    return 0


def _allow_files() -> None:
    """As many open files as the system lets us: connections, streams and engines need them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _references(settings: Settings, *, is_client: bool = False) -> tuple[str, ...]:
    """The models to serve; `is_client`: by its invite, the node may only ask."""
    serving = {"--model": settings.model, "--endpoint": settings.endpoint,
               "--standby": settings.standby, "--share": settings.share,
               "--split": settings.split, "--stages": settings.stages,
               "--flash": settings.flash, "--shards": settings.shards}  # fmt: skip
    if settings.client and any(serving.values()):
        wrong = next(flag for flag, given in serving.items() if given)
        raise SettingsError(f"--client serves nothing; leave out {wrong}, or --client")
    _check_companions(settings)
    loads.check_ways({"--split": settings.split, "--stages": settings.stages,
                      "--flash": settings.flash, "--shards": settings.shards})  # fmt: skip
    if settings.client or is_client or settings.endpoint or settings.standby:
        return settings.model
    return settings.model or (store.DEFAULT_MODEL,)


def _has_mesh(settings: Settings, tickets: tuple[Ticket, ...]) -> bool:
    """Whether there is a mesh that could be asked for what is no file here."""
    return bool(tickets) or bool(state.meshes(settings.data_path))


def _check_companions(settings: Settings) -> None:
    for flag, given in (("--draft", settings.draft), ("--mmproj", settings.mmproj)):
        if given and len(settings.model) != 1:
            raise SettingsError(
                f"{flag} belongs to one model: give exactly one --model with it, "
                f"and serve others by a node of their own"
            )


async def _until_signal(
    settings: Settings, stock: Stock, tickets: Any, plugins: Plugins, digests: Any, journal: Journal
) -> None:
    node = Node(settings, stock, tickets, plugins, digests, journal)
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:

            async def live() -> None:
                await node.run()
                nursery.cancel_scope.cancel()

            async def obey() -> None:
                await node.control.wait_stopped()
                journal.info("stopping", "An owner orders: stopping", signal=None)
                _leave_by(STOP_SECONDS)
                nursery.cancel_scope.cancel()

            nursery.start_soon(live)
            nursery.start_soon(obey)
            async for number in signals:
                name = signal.Signals(number).name
                journal.info("stopping", f"{name}: stopping", signal=name)
                _leave_by(STOP_SECONDS)
                nursery.cancel_scope.cancel()
    for number in SIGNALS:  # the node has stopped: whoever insists changes nothing any more
        signal.signal(number, signal.SIG_IGN)
    journal.info("stopped", "Stopped")


def _leave_by(seconds: float) -> None:
    """The last resort against a library that does not let go: engines end with the node."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()
