"""Models for tests of packages: one in several files, and one as another program publishes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from p2p_mesh.core.package import MANIFEST, home
from p2p_mesh.core.reference import split_names


def split_model(path: Path, parts: int = 3) -> Path:
    """Writes a GGUF file again, as one that is split; returns the first of its files."""
    reader = gguf.GGUFReader(path)
    each = -(-len(reader.tensors) // parts)
    writer = gguf.GGUFWriter(path, _architecture(reader), split_max_tensors=each)
    _copy_keys(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    _write(writer, path)
    count = -(-len(reader.tensors) // each)
    return path.with_name(next(split_names(f"{path.stem}-00001-of-{count:05}.gguf")))


def publish_elsewhere(model: Path, folder: Path) -> Path:
    """A package of a model as the format's first writer makes it: each artifact has all keys, and
    all tensors that belong to no layer; no list of pieces is beside the manifest.
    """
    reader = gguf.GGUFReader(model)
    homes = {tensor.name: home(tensor.name) for tensor in reader.tensors}
    count = 1 + max(one for one in homes.values() if isinstance(one, int))
    shared = {
        name: _artifact(reader, folder, f"shared/{name}.gguf", {name, "metadata"})
        for name in ("metadata", "embeddings", "output")
    }
    layers = [
        {"layer_index": number, **_artifact(reader, folder, f"layers/layer-{number:03}.gguf",
                                            {number, "metadata"})}
        for number in range(count)
    ]  # fmt: skip
    manifest = {
        "schema_version": 1, "model_id": "test/model:Q8_0", "format": "layer-package",
        "source_model": {"path": str(model), "sha256": "0" * 64}, "layer_count": count,
        "shared": shared, "layers": layers, "skippy_abi_version": "0.1.35",
        "created_at_unix_secs": 1790000000,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    return folder


def _artifact(reader: Any, folder: Path, path: str, homes: set[str | int]) -> dict[str, Any]:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, _architecture(reader))
    _copy_keys(reader, writer)
    held = [one for one in reader.tensors if home(one.name) in homes]
    for tensor in held:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    _write(writer, target)
    data = target.read_bytes()
    return {"path": path, "tensor_count": len(held), "artifact_bytes": len(data),
            "tensor_bytes": sum(int(one.n_bytes) for one in held),
            "sha256": hashlib.sha256(data).hexdigest().upper()}  # fmt: skip


def _architecture(reader: Any) -> str:
    return str(reader.fields["general.architecture"].contents())


def _copy_keys(reader: Any, writer: Any) -> None:
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], element)


def _write(writer: Any, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
