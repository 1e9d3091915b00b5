"""Headers of mixtures of experts."""

import math
from typing import Any

from p2p_mesh.core.gguf import BLOCKS, Header, Tensor, Value

F32, Q8_0 = 0, 8


def tensors(*named: tuple[str, tuple[int, ...], int]) -> tuple[Tensor, ...]:
    """One behind the other, from byte 1000 on."""
    placed: list[Tensor] = []
    at = 1000
    for name, shape, kind in named:
        block, size = BLOCKS.get(kind, (1, 0))
        one = Tensor(name, shape, kind, at, math.prod(shape) // block * size)
        placed.append(one)
        at += one.size
    return tuple(placed)


def mixture(
    *extra: tuple[str, tuple[int, ...], int], experts: int = 8, layer: int = 0, **keys: Any
) -> Header:
    """One layer of experts of 32 to 64 numbers, and what else is given."""
    told: dict[str, Value] = {"expert_count": experts, "expert_used_count": 2, "block_count": 2}
    metadata = {f"moe.{key}": value for key, value in (told | keys).items()}
    at = f"blk.{layer}"
    return Header(
        {"general.architecture": "moe", **metadata},
        tensors(
            ("token_embd.weight", (32, 100), F32),
            (f"{at}.ffn_gate_inp.weight", (32, experts), F32),
            (f"{at}.ffn_gate_exps.weight", (32, 64, experts), Q8_0),
            (f"{at}.ffn_up_exps.weight", (32, 64, experts), Q8_0),
            (f"{at}.ffn_down_exps.weight", (64, 32, experts), Q8_0),
            *extra,
        ),
    )
