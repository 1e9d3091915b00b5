"""What a node's log says of the stages that it holds, and of the rings that it coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from meshnode_skippy.lease import Prepare
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.stages import Place, layers
from p2p_mesh.errors import MeshError
from p2p_mesh.serve.backend import Mesh


@contextmanager
def held(mesh: Mesh, asked: Prepare, peer: PeerId) -> Iterator[None]:
    """A stage is held for a node meanwhile."""
    what = f"{_layers(asked)} of {asked.model} for {_who(mesh, peer)}"
    mesh.say("stage_held", f"holding {what}")
    why = "its lease has ended"
    try:
        yield
    except MeshError as error:
        why = str(error)
        raise
    finally:
        mesh.say("stage_released", f"no longer holding {what}: {why}")


def lost(mesh: Mesh, place: Place, model: str, error: MeshError) -> None:
    """A stage was lost, and somebody is looked for who takes it over."""
    mesh.say("stage_lost", f"{model} has lost its {_layers(place)}, and replaces them: {error}")


def parted(mesh: Mesh, model: str, reason: str) -> None:
    """All stages are there, and a link between two is not."""
    mesh.say("stages_parted", f"the stages of {model} are joined anew: {reason}")


def whole(mesh: Mesh, model: str, seconds: float, taken: list[Place]) -> None:
    """The ring is up again; some stages have gone to those places."""
    places = "".join(f", {_layers(one)} on {one.name}" for one in taken)
    mesh.say("stages_joined", f"{model} has all its stages again, after {seconds:.1f} s{places}")


def _layers(stage: Prepare | Place) -> str:
    return layers(stage.start, stage.end)


def _who(mesh: Mesh, peer: PeerId) -> str:
    if peer == mesh.me():
        return "this node"
    named = (one.name for other, one in mesh.peers() if other == peer)
    return next(named, "") or str(peer)
