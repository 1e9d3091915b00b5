"""What the settings want of a model that is a file of this node."""

from __future__ import annotations

import dataclasses

from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import ModelError
from p2p_mesh.serve import store
from p2p_mesh.serve.backend import Load
from p2p_mesh.settings import Settings


def load(model: ModelFile, settings: Settings) -> Load:
    """A model of --model, and what belongs to it. Raises ModelError for a draft or a projector
    that cannot be read.
    """
    draft, projector = _beside(settings.draft), _projector(settings.mmproj)
    return dataclasses.replace(plain(model, settings), draft=draft, projector=projector)


def plain(model: ModelFile, settings: Settings) -> Load:
    """Any other model, which has no draft and no projector."""
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
