"""What the settings want of a model that is a file of this node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.stages import Topology, read_topology
from p2p_mesh.errors import ModelError, SettingsError
from p2p_mesh.serve import store
from p2p_mesh.serve.backend import Load
from p2p_mesh.settings import Settings

MAX_PLAN = 1 << 20
"""Bytes of a file that says which node holds which layers."""


def load(model: ModelFile, settings: Settings) -> Load:
    """A model of --model, and what belongs to it. Raises ModelError for a draft or a projector
    that cannot be read.
    """
    draft, projector = _beside(settings.draft), _projector(settings.mmproj)
    return dataclasses.replace(plain(model, settings), draft=draft, projector=projector)


def plain(model: ModelFile, settings: Settings) -> Load:
    """Any other model, which has no draft and no projector. Raises SettingsError for a plan of
    stages that cannot be read.
    """
    topology = stages(settings.stages) if settings.stages else None
    return Load(
        model,
        context=settings.ctx,
        slots=settings.parallel,
        threads=settings.threads,
        memory_limit=settings.memory_limit,
        kv_type=settings.kv_type,
        gpu_layers=settings.gpu_layers,
        deterministic=settings.deterministic,
        speculation=settings.speculation,
        split=settings.split,
        flash=settings.flash,
        shards=settings.shards,
        min_mass=settings.min_mass,
        topology=topology if topology is not None and topology.model == model.id else None,
        most_round_trip=settings.max_rtt / 1e3,
        wire=settings.wire,
    )


def stages(path: str) -> Topology:
    """What a file says of which node holds which layers. Raises SettingsError."""
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(MAX_PLAN + 1)
    except OSError as error:
        raise SettingsError(
            f"the plan of stages {path} cannot be read: {error.strerror}"
        ) from error
    if len(data) > MAX_PLAN:
        raise SettingsError(f"the plan of stages {path} has over {MAX_PLAN} bytes: it is none")
    return read_topology(data, path)


def check_ways(given: Mapping[str, object]) -> None:
    """Raises SettingsError where flags name two ways to serve a model: who names two means neither.
    A plan of stages is one of `--split`.
    """
    named = [flag for flag, value in given.items() if value]
    if named[1:] and set(named) != {"--split", "--stages"}:
        raise SettingsError(
            f"{named[-1]} and {named[0]} are two ways to serve a model; leave out one of them"
        )


def check_stages(settings: Settings, models: Iterable[ModelFile]) -> None:
    """Raises SettingsError where the plan of --stages is for a model that is not there: it would
    be served in another way than its owner wrote.
    """
    names = [one.id for one in models]
    if settings.stages and (wanted := stages(settings.stages).model) not in names:
        raise SettingsError(
            f"--stages {settings.stages} is a plan for {wanted}, and this node has "
            f"{', '.join(names) or 'no model'}"
        )


def _projector(reference: str) -> ModelFile | None:
    found = _beside(reference)
    if found is not None and found.architecture != store.PROJECTOR:
        raise ModelError(
            f"{found.path} is no projector but a model ({found.architecture}); --mmproj takes the "
            f"file that is published beside the model, often named mmproj-*.gguf"
        )
    return found


def _beside(reference: str) -> ModelFile | None:
    return store.read(store.find(reference)) if reference else None
