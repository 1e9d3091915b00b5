"""The frozen records that travel: between nodes, between node and engine, and to clients.

Bounds stand in the types, so that a record which decodes is a record within its limits
(specs/README.md). Fields that this version does not know are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from p2p_mesh.core.names import Digest, ModelId, RequestId

Role = Literal["member", "client"]
Finish = Literal["stop", "length", "tool_calls"]
KvType = Literal["f16", "q8_0", "q4_0"]
Choice = Literal["whole", "stages", "shards", "flash"]
"""How a model is served: on one node; its layers on several; each of several with a part of its
experts; or with its experts on the disk of one.
"""

ShortText = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

Probability = Annotated[float, Meta(le=0)]
"""A natural logarithm."""

MAX_PROMPT_TOKENS = 2**20
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_PACKAGES = 64
"""Packages that an announcement names."""
MAX_INPUTS = 256
"""Texts of one query; the front cuts longer lists into several."""


class Record(Struct, frozen=True, omit_defaults=True):
    """Base of all records."""


class Sampling(Record, frozen=True, kw_only=True):
    """How the next token is drawn. Defaults are OpenAI's, and llama-server's for the rest.

    Position i of choice c draws with a generator seeded by H(seed, c, i), so that a draw
    needs no history.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**20)] = 40
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    logit_bias: Annotated[
        tuple[tuple[TokenId, Annotated[float, Meta(ge=-100, le=100)]], ...],
        Meta(max_length=MAX_BIASES),
    ] = ()
    """Added to the logits of these tokens."""


class Tool(Record, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema of its arguments."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class ChatPrompt(Record, frozen=True, kw_only=True, tag="chat"):
    """Messages as the client sent them; the engine applies the model's own template."""

    messages: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1, max_length=MAX_MESSAGES)]
    """OpenAI's, with tool calls and content parts; images and sounds as data, never as links."""
    tools: Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    """A named tool is `required` where `tools` holds that tool alone."""
    parallel_tool_calls: bool = True
    variables: dict[str, Any] = {}
    """More of what the template sees: `reasoning_effort`, `enable_thinking`."""


class TextPrompt(Record, frozen=True, kw_only=True, tag="text"):
    text: str
    suffix: str = ""
    """What follows the answer; a model takes it that was trained to fill gaps."""


class TokenPrompt(Record, frozen=True, kw_only=True, tag="tokens"):
    tokens: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]


class Resume(Record, frozen=True, kw_only=True):
    """How far one choice of a broken answer had come: the tokens that were sampled, and how many
    characters of each channel were delivered. The engine that goes on emits only the rest.
    """

    choice: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)] = 0
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_PROMPT_TOKENS)] = ()
    text: Count = 0
    reasoning: Count = 0
    calls: Annotated[tuple[Count, ...], Meta(max_length=1024)] = ()
    """Of the arguments of each tool call whose name was delivered."""
    finished: bool = False
    """The choice had its `finish`: nothing of it is left."""


class InferenceRequest(Record, frozen=True, kw_only=True):
    """One question to one model. The asking node draws the id, the seed and the time."""

    id: Annotated[RequestId, Meta(min_length=1, max_length=64)]
    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: Sampling = Sampling()
    choices: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """Tokens of a choice at most; None: until the context is full. 0 only with `echo`."""
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
                    Meta(max_length=16)] = ()  # fmt: skip
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Log-probabilities of the sampled tokens are wanted, and of so many of the likeliest."""
    echo: bool = False
    """The prompt comes first in the text of each choice, and in its log-probabilities."""
    schema: dict[str, Any] | None = None
    """A JSON schema that the text of the answer follows."""
    resume: Annotated[tuple[Resume, ...], Meta(max_length=MAX_CHOICES)] = ()
    """Where a broken answer is to go on; a choice that is not named begins."""
    asked_at: Count = 0
    """Unix seconds; what a template's `strftime_now` shows."""
    weigh: bool = False
    """Its conversation has settled nowhere yet: before the first token an expert shard may say
    that another holds more of what the prompt needs, and whose (errors.HandedOver).
    """


class Usage(Record, frozen=True, kw_only=True):
    """Tokens of a whole answer: the prompt once, and all choices together."""

    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0
    """Of the prompt, those that were not computed but found in the KV cache."""
    reasoning_tokens: Count = 0
    drafted_tokens: Count = 0
    """Tokens that speculation proposed,"""
    accepted_tokens: Count = 0
    """and those of them that the model would have chosen."""


class TokenLogprob(Record, frozen=True, kw_only=True):
    """A token and the natural logarithm of its probability, before temperature and truncation."""

    token: TokenId
    piece: Annotated[bytes, Meta(max_length=65536)] = b""
    """What the token spells; UTF-8, perhaps in the middle of a character."""
    logprob: Probability | None = None
    """None for the first token of a prompt, which nothing came before."""
    top: Annotated[tuple[tuple[TokenId, bytes, Probability], ...],
                   Meta(max_length=MAX_LOGPROBS)] = ()  # fmt: skip
    """The likeliest tokens in that place, falling: id, piece and logarithm."""


class CallDelta(Record, frozen=True, kw_only=True):
    """What a tool call grew by. The first of a call has its name; the arguments, put together,
    are JSON.
    """

    index: Annotated[int, Meta(ge=0, lt=1024)] = 0
    name: str = ""
    arguments: str = ""


class Delta(Record, frozen=True, kw_only=True):
    """What an answer grew by. Covers every sampled token, also one whose text is withheld
    (half a UTF-8 character, a possible stop string), so an answer can be resumed from its ids.
    The last one of a choice has `finish`; the last of an answer has `usage`.
    """

    choice: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)] = 0
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=65536)] = ()
    text: str = ""
    reasoning: str = ""
    calls: Annotated[tuple[CallDelta, ...], Meta(max_length=1024)] = ()
    logprobs: Annotated[tuple[TokenLogprob, ...], Meta(max_length=65536)] = ()
    finish: Finish | None = None
    usage: Usage | None = None


Inputs = Annotated[tuple[str | tuple[TokenId, ...], ...], Meta(min_length=1, max_length=MAX_INPUTS)]


class EmbedQuery(Record, frozen=True, kw_only=True, tag="embed"):
    """Texts (or token ids) whose vectors are wanted."""

    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    inputs: Inputs


class RerankQuery(Record, frozen=True, kw_only=True, tag="rerank"):
    """How well does each document answer the question?"""

    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    query: str
    documents: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_INPUTS)]


class TokenizeQuery(Record, frozen=True, kw_only=True, tag="tokenize"):
    """The tokens of a text, or of a chat as the model's template writes it."""

    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    prompt: ChatPrompt | TextPrompt
    add_special: bool = True
    """With the tokens that the model puts around a text."""
    parse_special: bool = True
    """Special tokens are recognised where their text stands."""
    with_pieces: bool = False
    asked_at: Count = 0


class DetokenizeQuery(Record, frozen=True, kw_only=True, tag="detokenize"):
    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_PROMPT_TOKENS)]


class Vectors(Record, frozen=True, kw_only=True, tag="vectors"):
    """One vector for each input, of length one: float32, little-endian."""

    vectors: Annotated[tuple[bytes, ...], Meta(max_length=MAX_INPUTS)]
    prompt_tokens: Count


class Scores(Record, frozen=True, kw_only=True, tag="scores"):
    """One score for each document, in their order; higher is better."""

    scores: Annotated[tuple[float, ...], Meta(max_length=MAX_INPUTS)]
    prompt_tokens: Count


class Tokens(Record, frozen=True, kw_only=True, tag="tokens"):
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_PROMPT_TOKENS)]
    pieces: Annotated[tuple[bytes, ...], Meta(max_length=MAX_PROMPT_TOKENS)] = ()


class Text(Record, frozen=True, kw_only=True, tag="text"):
    text: str


Query = EmbedQuery | RerankQuery | TokenizeQuery | DetokenizeQuery
"""A question that is answered at once, and whole."""
Reply = Vectors | Scores | Tokens | Text


class Shard(Record, frozen=True, kw_only=True):
    """What an expert shard is of: the model whose experts it has some of."""

    model: Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    """The digest of the whole model."""
    mass: Annotated[float, Meta(ge=0, le=1)]
    """The share of the routing that goes to the experts it has, as measured on texts."""


class ModelFile(Record, frozen=True, kw_only=True):
    """A model file on this node, as its header describes it."""

    id: ModelId
    path: str
    size_bytes: int
    architecture: str
    context_length: int
    """Tokens the model was trained for; 0 where the header does not say."""
    kv_bytes_per_token: int
    """Keys and values of all layers, at f16: an upper bound where layers have a sliding window."""
    state_bytes: int = 0
    """What recurrent layers keep of a sequence, however long it is; 0 where there are none."""
    window: int = 0
    """Tokens that sliding layers see; 0 where there are none."""
    window_bytes_per_token: int = 0
    """Of `kv_bytes_per_token`, what the sliding layers take."""
    heads: int = 0
    """Attention heads of a layer, in the layer that has the most; 0: not known."""
    digest: Digest | None = None
    experts: int = 0
    """Routed experts of a layer of a mixture of experts; 0: it is none."""
    experts_used: int = 0
    """Of them, those that one token goes through."""
    expert_layers: int = 0
    """Layers that have experts."""
    expert_bytes: int = 0
    """Of `size_bytes`, the weights of all routed experts."""
    shard: Shard | None = None
    """The file is an expert shard of a model."""


class Resources(Record, frozen=True, kw_only=True):
    """What a node has to work with; memory in bytes."""

    memory_total: Count
    memory_free: Count
    threads: Count
    device: ShortText = "cpu"
    bandwidth: Annotated[float, Meta(ge=0, le=1e15)] = 0.0
    """Bytes of weights that its engines read in a second, as measured once; 0: not measured."""
    disk: Annotated[float, Meta(ge=0, le=1e15)] = 0.0
    """Bytes of a model's file that come from the disk in a second, several reads at a time, past
    the memory of the system; 0: not measured.
    """


class ServedModel(Record, frozen=True, kw_only=True):
    """A model that a node answers for."""

    id: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    digest: Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None = None
    context: Count
    slots: Count
    capabilities: Annotated[tuple[ShortText, ...], Meta(max_length=32)] = ("generate",)
    resumable: bool = True
    numerics: ShortText = ""
    shard: Shard | None = None
    """It has a part of the experts of the model that `shard.model` names, and answers for it."""
    speed: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """Tokens a second of one answer, as measured here; 0: not yet."""


class Held(Record, frozen=True, kw_only=True):
    """A model file that a node has on its disk, and could serve."""

    id: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    digest: Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None = None
    size_bytes: Count = 0
    loading: bool = False
    """It is being loaded now, so that nobody else need load it."""
    resting: bool = False
    """It will not be loaded now, however much it is wanted: others need not wait for this node."""
    waiting: bool = False
    """It is loaded once other nodes are there to take stages of it, or shards."""
    shards: Count = 0
    """It is served by expert shards, or will be, and this node takes part: with room for so many
    bytes of experts. 0: it takes no part.
    """


class ModelLoad(Record, frozen=True, kw_only=True):
    """How busy a node is with a model now. Never gossiped: it rides on the end of each answer and
    on pongs (specs/health/README.md). Times in seconds.
    """

    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    slots: Count
    active: Count = 0
    """Requests that have a slot,"""
    queued: Count = 0
    """and those that wait for one."""
    prefill: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """Tokens of prompts that are read in a second; 0: not known."""
    first: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """What the last answers took from their slot to their first token; 0: not known."""
    whole: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """How long the last answers held their slot; 0: not known."""


class Announcement(Record, frozen=True, kw_only=True):
    """What a member offers, signed by it (core/inventory.py). Times in seconds."""

    sequence: tuple[Count, Count]
    """Boot time in milliseconds, then a counter: later is newer, also after a restart."""
    issued_at: Annotated[float, Meta(ge=0, le=2**53)]
    lifetime: Annotated[float, Meta(gt=0, le=21_600)]
    name: ShortText
    version: ShortText
    role: Role = "member"
    resources: Resources
    models: Annotated[tuple[ServedModel, ...], Meta(max_length=256)] = ()
    held: Annotated[tuple[Held, ...], Meta(max_length=256)] = ()
    backends: Annotated[tuple[ShortText, ...], Meta(max_length=32)] = ()
    """What it can run models with: who names `skippy` takes stages of others' models."""
    packages: Annotated[
        tuple[Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")], ...],
        Meta(max_length=MAX_PACKAGES),
    ] = ()
    """Manifests of packages of which it serves parts."""
    addresses: Annotated[tuple[ShortText, ...], Meta(max_length=32)] = ()
    """Multiaddrs without the peer id."""
