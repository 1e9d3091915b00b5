"""What is known of each family of models: how its graph is fed, which of its layers must not be
missing, which tensors its files hold beside the layers, and why a family is refused.

Every fact is of llama.cpp as llama-cpp-python 0.3.36 carries it (src/models/<family>.cpp), and
every family listed has been run in stages against the uncut model (`scripts/certify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from p2p_mesh.core.families.recipe import Entry

Head = Literal["optional", "required", "tied", "separate"]
"""`output.weight`: `optional` (the embedding table takes its place where it is missing), `required`
by the graph, `tied` (the embedding table always), or `separate` (of another vocabulary).
"""


@dataclass(frozen=True, slots=True)
class Family:
    first: Entry = "rows"
    later: Entry = "rows"
    scales_tokens: bool = False
    """Rows of the embedding table are scaled by sqrt(width) by whoever feeds them."""
    head: Head = "optional"
    norm: str = "output_norm.weight"
    """The norm before the head; empty: it has no weights."""
    norm_bias: bool = False
    head_bias: bool = False
    period: int = 1
    """The graph does arithmetic with the number of a layer, modulo this."""
    window: tuple[int, bool] | None = None
    """Some layers see a window: one in so many sees all (the first of them, or the last), where
    the file does not say which. A period of 1: the file always says it.
    """
    window_implied: bool = False
    """It has windows even where the file gives no width."""
    window_droppable: bool = False
    """A width of 0 means no windows, and changes nothing else."""
    interval: int = 0
    """Some layers are recurrent: all but one in so many, where the file does not say which."""
    counts: frozenset[int] = frozenset()
    """Numbers of layers at which the graph becomes another one."""
    hyper: Literal["", "full", "low_rank"] = ""
    """Several residual streams, and a head that joins them."""


_PLAIN = Family()
_REQUIRED = Family(head="required")
_BIASED = Family(norm_bias=True)
_REQUIRED_BIASED = Family(head="required", norm_bias=True)
_HYBRID4 = Family(interval=4)

_FAMILIES: Mapping[str, Family] = {
    "afmoe": Family(later="inject", period=4, window=(4, False)),
    "arcee": _PLAIN,
    "arctic": _PLAIN,
    "baichuan": replace(_REQUIRED, counts=frozenset({32, 40})),
    "bailingmoe": _REQUIRED,
    "bailingmoe2": _REQUIRED,
    "bailingmoe3": _PLAIN,
    "bloom": Family(later="inject", norm_bias=True),
    "chatglm": _PLAIN,
    "codeshell": _REQUIRED_BIASED,
    "cogvlm": Family(first="tokens", later="inject"),
    "cohere2": Family(head="tied", window=(4, False)),
    "cohere2moe": Family(window=(4, True)),
    "command-r": Family(head="tied"),
    "dbrx": _REQUIRED,
    "deci": _PLAIN,
    "deepseek": _PLAIN,
    "deepseek2": _PLAIN,
    "deepseek32": _PLAIN,
    "deepseek4": Family(first="tokens", later="inject", head="required", hyper="full"),
    "dots1": _REQUIRED,
    "dots3note": Family(window=(1, False)),
    "dream": _PLAIN,
    "ernie4_5": _PLAIN,
    "ernie4_5-moe": _PLAIN,
    "exaone": _PLAIN,
    "exaone-moe": Family(head="required", window=(4, False)),
    "exaone4": replace(_PLAIN, counts=frozenset({64})),
    "falcon": _BIASED,
    "falcon-h1": _PLAIN,
    "gemma": Family(later="inject", head="tied"),
    "gemma2": Family(later="inject", head="tied", window=(2, False), window_implied=True),
    "gemma3": Family(scales_tokens=True, window=(6, False), window_droppable=True),
    "glm-dsa": _PLAIN,
    "glm4": _PLAIN,
    "glm4moe": _PLAIN,
    "glm5-next": Family(later="inject", head="required"),
    "gpt-oss": Family(head="required", window=(2, False)),
    "gpt2": _BIASED,
    "gptneox": _REQUIRED_BIASED,
    "granite": _PLAIN,
    "granite_swa": Family(window=(1, False)),
    "granitehybrid": _PLAIN,
    "granitemoe": _PLAIN,
    "grok": _PLAIN,
    "grovemoe": _PLAIN,
    "hunyuan-dense": _PLAIN,
    "hunyuan-moe": _PLAIN,
    "hunyuan_vl": _PLAIN,
    "hy_v3": _PLAIN,
    "hy_v4": Family(later="inject", head="required", hyper="full"),
    "internlm2": _REQUIRED,
    "jais": _REQUIRED_BIASED,
    "jais2": _BIASED,
    "jamba": _PLAIN,
    "kimi-k3": _REQUIRED,
    "kimi-linear": _REQUIRED,
    "laguna": Family(window=(4, True), window_droppable=True),
    "lfm2": Family(norm="token_embd_norm.weight"),
    "lfm2moe": Family(norm="token_embd_norm.weight"),
    "llada": _PLAIN,
    "llada-moe": _REQUIRED,
    "llama": _PLAIN,
    "llama4": Family(period=4, window=(4, False), window_implied=True),
    "maincoder": _PLAIN,
    "mamba": _PLAIN,
    "mamba2": _PLAIN,
    "maple": Family(head="required", window=(1, False)),
    "mellum": Family(head="required", window=(4, False), window_droppable=True),
    "mimo2": Family(head="required", window=(1, False)),
    "minicpm": _PLAIN,
    "minicpm3": Family(later="inject"),
    "minimax-m2": _REQUIRED,
    "minimax-m3": _REQUIRED,
    "mistral3": _PLAIN,
    "mistral4": _PLAIN,
    "mpt": _PLAIN,
    "muse-glimmer": Family(later="inject", head="required", window=(4, False)),
    "nanbeige": _PLAIN,
    "nemotron": _REQUIRED_BIASED,
    "nemotron_h": _PLAIN,
    "nemotron_h_moe": _PLAIN,
    "olmo": Family(norm=""),
    "olmo2": Family(head="required", window=(4, False), window_droppable=True),
    "olmoe": _REQUIRED,
    "openelm": Family(head="tied"),
    "orion": _REQUIRED_BIASED,
    "paddleocr": _PLAIN,
    "pangu-embedded": _PLAIN,
    "phi2": replace(_REQUIRED_BIASED, head_bias=True),
    "phi3": _PLAIN,
    "phimoe": replace(_REQUIRED_BIASED, head_bias=True),
    "plamo": _REQUIRED,
    "plamo2": _PLAIN,
    "plamo3": Family(window=(8, False), window_droppable=True),
    "pockettts": Family(head="tied", norm_bias=True),
    "qwen": _REQUIRED,
    "qwen2": _PLAIN,
    "qwen2moe": _REQUIRED,
    "qwen2vl": _PLAIN,
    "qwen3": _PLAIN,
    "qwen35": _HYBRID4,
    "qwen35moe": _HYBRID4,
    "qwen3moe": _PLAIN,
    "qwen3next": _HYBRID4,
    "qwen3tts": Family(head="separate"),
    "qwen3vl": _PLAIN,
    "qwen3vlmoe": _PLAIN,
    "qwen4exp": Family(first="tokens", later="inject", norm="", interval=4, hyper="low_rank"),
    "refact": _PLAIN,
    "rnd1": _PLAIN,
    "seed_oss": _PLAIN,
    "smallthinker": Family(period=4, window=(4, True), counts=frozenset({4})),
    "smollm3": Family(period=4),
    "spark2_5": Family(window=(1, False)),
    "stablelm": _REQUIRED_BIASED,
    "starcoder": _BIASED,
    "starcoder2": _BIASED,
    "talkie": Family(head="required", norm=""),
    "xverse": _REQUIRED,
}

CERTIFIED = frozenset(_FAMILIES)
"""The families that can be cut, each at least in part."""

_REFUSED: Mapping[str, str] = {
    "hrm_text": "its layers are run in loops, so that no cut separates them",
    "minimax-01": "the decay of its linear attention depends on how many layers there are",
    "gemma3n": "later layers use the memory of earlier ones, and the input of each is made from "
    "the tokens",
    "gemma4": "later layers use the memory of earlier ones, and the input of each is made from "
    "the tokens",
    "rwkv6": "no rule has been proved for it",
    "rwkv7": "every layer needs what the first one has computed",
    "rwkv6qwen2": "no rule has been proved for it",
    "arwkv7": "every layer needs what the first one has computed",
    "step35": "no rule has been proved for it",
    "apertus": "no rule has been proved for it",
    "graniteswitch": "its adapters are chosen by the tokens",
}


def refusal(architecture: str) -> str:
    """Why models of this family are not cut; empty: they are."""
    if architecture in _FAMILIES:
        return ""
    return _REFUSED.get(architecture, "its family is not among those proved to be cut exactly")


def family(architecture: str) -> Family:
    return _FAMILIES[architecture]
