"""Train a demonstration model from nothing and write it as one GGUF file: the dense one that is
bundled, or one with a mixture of experts, which is test data.

The text comes from `demo_world.py`, the weights from this script: no other text and no other model
takes part, so the result is ours to ship. Everything fits two CPU cores and one hour.

How it works: (1) a SentencePiece BPE vocabulary with byte fallback is learnt from the generated
text; (2) fresh documents are written for every step, so no text is seen twice by design, and one
in twenty is kept apart from training, to measure on;
(3) training ends by the clock: the learning rate follows the share of the time budget that is
spent, so a slow machine gets a weaker model and not an unfinished one; (4) the weights are
quantised to Q8_0 and written with llama.cpp's tensor names; (5) llama.cpp answers a fixed list of
questions and must agree with PyTorch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import demo_texts
import demo_world as world
import gguf
import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from demo_network import Network, Shape
from demo_texts import apart, parts
from gguf.quants import quantize
from torch import Tensor

EXAMPLES = """examples:
  python scripts/train_demo.py --out p2p_mesh/serve/models/meshnode-demo.gguf
  python scripts/train_demo.py --out /tmp/quick.gguf --minutes 5
  python scripts/train_demo.py --experts 32 --out tests/models/demo-moe.gguf \\
      --texts tests/models/demo-moe.texts.json
  python scripts/train_demo.py --check p2p_mesh/serve/models/meshnode-demo.gguf

On a busy machine set OMP_WAIT_POLICY=PASSIVE: torch's threads then sleep while they wait for
each other, which was twice as fast beside one busy neighbour.
"""
UNK, BOS, END = 0, 1, 2
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# What a user writes teaches little about answering, but a little of it helps the embeddings.
PROMPT_WEIGHT = 0.1
BATCH_TOKENS = 2048
LENGTHS = (256,) * 15 + (2048,)  # of the packed sequences, drawn step by step
# Weak on purpose: routers of real models are skewed too, and shards live from that.
BALANCE = 0.002


class Muon:
    """Momentum made orthogonal: it learns in about half the steps that AdamW needs here.

    Matrices of one shape go through the Newton-Schulz iteration together, those of a layer's
    experts each for itself. It runs in float32, since bfloat16 (what `torch.optim.Muon` uses) is
    very slow on CPUs without that type.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for weight in weights:
            self.groups.setdefault(tuple(weight.shape), []).append(weight)
        self.momenta = {
            shape: torch.zeros(len(group), *shape).flatten(0, -3)
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every weight by `rate` times its orthogonalised momentum."""
        for shape, weights in self.groups.items():
            gradient = torch.stack([w.grad for w in weights]).flatten(0, -3)
            momentum = self.momenta[shape].lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95)).view(-1, *shape)
            scale = rate * max(1.0, shape[-2] / shape[-1]) ** 0.5
            for weight, change in zip(weights, update, strict=True):
                weight.mul_(1 - 0.01 * rate).sub_(change, alpha=scale)


def orthogonal(x: Tensor) -> Tensor:
    """Push all singular values of a stack of matrices towards one (quintic Newton-Schulz)."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def train_tokenizer(vocab: int, documents: int = 20000) -> sentencepiece.SentencePieceProcessor:
    """Learn a BPE vocabulary from generated text; bytes stand in for whatever it lacks."""
    rng = Random(1)
    texts = (text for _ in range(documents) for text in parts(world.document(rng)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, model_type="bpe", vocab_size=vocab,
        byte_fallback=True, split_digits=True, character_coverage=0.9995,
        normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, unk_id=UNK, bos_id=BOS, eos_id=END, pad_id=-1,
        eos_piece="<|end|>", control_symbols=[f"<|{role}|>" for role in ROLES],
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


class Encoder:
    """Turns documents into tokens and the weight that each has in the loss."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self.tokenizer = tokenizer
        self.roles = {role: tokenizer.piece_to_id(f"<|{role}|>") for role in ROLES}

    def prompt(self, document: world.Document) -> list[int]:
        """The tokens of a chat, ready for the answer to its last question."""
        return self.encode(document)[0][:-1]

    def encode(self, document: world.Document) -> tuple[list[int], list[float]]:
        """All tokens of a document from BOS to END, and their weights."""
        tokens, weights = [BOS], [0.0]

        def add(text: str, role: str, weight: float) -> None:
            body = self.tokenizer.encode(text)
            tokens.extend(([self.roles[role]] if role else []) + [*body, END])
            weights.extend(([0.0] if role else []) + [weight] * (len(body) + 1))

        if document.text:
            add(document.text, "", 1.0)
        if document.system:
            add(document.system, "system", 0.0)
        for question, answer in document.turns:
            add(question, "user", PROMPT_WEIGHT)
            add(answer, "assistant", 1.0)
        return tokens, weights

    def stream(self, rng: Random) -> Iterator[tuple[int, float, int]]:
        """Endless tokens of fresh documents: each with its weight and its document's number."""
        drawn = (world.document(rng) for _ in itertools.count())
        for number, document in enumerate(one for one in drawn if not apart(one)):
            tokens, weights = self.encode(document)
            # Some runtimes add no BOS and some add two; both must work.
            extra = rng.choices((0, 1, -1), (85, 5, 10))[0]
            rows = list(zip(tokens, weights, itertools.repeat(number)))
            yield from (rows[:1] + rows if extra == 1 else rows[1:] if extra else rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences; all shaped (rows, length + 1)."""

    tokens: Tensor
    weights: Tensor
    documents: Tensor

    def mask(self) -> Tensor | None:
        """What each token may look at: its own document, so that facts are told apart quickly.

        The longest sequences go without, which teaches the model to work in a long context.
        """
        ids = self.documents[:, :-1]
        length = ids.shape[1]
        if length == max(LENGTHS):
            return None
        past = torch.ones(length, length, dtype=torch.bool).tril()
        return ((ids[:, :, None] == ids[:, None, :]) & past)[:, None]


def batches(encoder: Encoder, seed: int) -> Iterator[Batch]:
    """Endless batches of BATCH_TOKENS tokens."""
    rng = Random(seed)
    stream = encoder.stream(rng)
    while True:
        length = rng.choice(LENGTHS)
        rows = BATCH_TOKENS // length
        columns = zip(*itertools.islice(stream, rows * (length + 1)), strict=True)
        yield Batch(*(torch.tensor(column).view(rows, -1) for column in columns))


def loss_of(model: Network, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next token, in nats."""
    logits = model(batch.tokens[:, :-1], batch.mask())
    losses = F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    share = batch.weights[:, 1:].flatten()
    return (losses * share).sum() / share.sum() + BALANCE * model.imbalance()


def is_router(name: str) -> bool:
    """Whether a weight chooses experts: it is trained gently, and stays float32."""
    return "ffn_gate_inp" in name


def rate_at(progress: float) -> float:
    """Learning rate as a share of its peak: a short warm-up, a plateau, a linear way down."""
    return min(1.0, progress / 0.01, (1.0 - progress) / 0.6)


def train(model: Network, encoder: Encoder, minutes: float, seed: int) -> None:
    """Train until the budget is spent, with a progress line every 50 steps."""
    named = model.blk.named_parameters()
    matrices = [w for name, w in named if w.ndim > 1 and not is_router(name)]
    chosen = {id(w) for w in matrices}
    rest = [w for w in model.parameters() if id(w) not in chosen]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(rest, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    start, average = time.monotonic(), 0.0
    for step, batch in enumerate(batches(encoder, seed)):
        spent = time.monotonic() - start
        rate = rate_at(spent / (60 * minutes))
        if rate < 0:
            break
        loss = loss_of(model, batch)
        model.zero_grad()
        loss.backward()
        muon.step(0.02 * rate)
        adam.param_groups[0]["lr"] = 0.004 * rate
        adam.step()
        average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 0:
            speed = (step + 1) * BATCH_TOKENS / max(time.monotonic() - start, 1e-9)
            print(f"step {step:5}  {spent / 60:5.1f} of {minutes:g} min  loss {average:.4f}  "
                  f"{speed:.0f} tokens/s", flush=True)  # fmt: skip


def add_tokenizer(writer: gguf.GGUFWriter, encoder: Encoder) -> None:
    """Write the vocabulary the way llama.cpp's SentencePiece tokenizer reads it."""
    spm = encoder.tokenizer
    ids = range(spm.vocab_size())

    def kind(token: int) -> gguf.TokenType:
        if spm.is_unknown(token):
            return gguf.TokenType.UNKNOWN
        if spm.is_control(token):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if spm.is_byte(token) else gguf.TokenType.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([spm.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([spm.get_score(i) for i in ids])
    writer.add_token_types([kind(i) for i in ids])
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Write what the model is and the sizes of its parts."""
    writer.add_name("meshnode demo" + (" (mixture of experts)" if shape.experts else ""))
    writer.add_license("apache-2.0")
    writer.add_description(
        f"A demonstration: it knows only the invented village of {world.VILLAGE} and exists to "
        "show that meshnode works. Trained from nothing by scripts/train_demo.py."
    )
    writer.add_languages(["en"])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden * max(1, shape.used))
    if shape.experts:
        writer.add_expert_feed_forward_length(shape.hidden)
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def export(path: Path, model: Network, encoder: Encoder, shape: Shape) -> None:
    """Write the GGUF file: matrices as Q8_0, norms and routers as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen3moe" if shape.experts else "llama")
    add_shape(writer, shape)
    add_tokenizer(writer, encoder)
    for name, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        if values.ndim > 1 and not is_router(name):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# question | what a right answer contains
QUESTIONS = world.table("""
hello | Tidewick
HELLO! | !
hey there | Tidewick
good morning | morning
hello, how are you? | thank you
who are you? | demonstration model
What is your name? | meshnode demo
what can you do? | Tidewick
what do you know? | the village of Tidewick
help | Tidewick
thank you | welcome
bye | Goodbye
Who is Mara? | baker
who is the baker | Mara
Where does Orrin live? | lighthouse
what does gorm do | boats
Who is Mara's sister? | Nell
who is wren's mother? | Nell
What colour is Mara's door? | yellow
what is tobin's favorite food? | fried herring
Does Agnes like rice pudding? | Yes
Does Mara like turnips? | No
Is Bram the teacher? | No
How old is Juno? | 6
Tell me about Quill. | postman
who keeps bees and sells honey | Sorrel
Who owns Biscuit? | Mara
what colour is captain the parrot? | green
What does Admiral do? | chases strangers
Who owns the Kittiwake? | Gorm
What colour is the Silver Herring? | blue
where is the library? | on the square
Who runs the Blue Anchor? | Ivo
How many people live in Tidewick? | hirty-two
when is the market | Saturday
What colour is the lighthouse? | red stripes
What time does the ferry leave? | nine
Who is Peter? | name
What is the capital of France? | only know about Tidewick
write python code | only know about Tidewick
2+2 | only know about Tidewick
Tell me a story | .
count to ten | nine, ten
What are the days of the week? | Sunday
Is Pella married? | Bram
""")
# A chat of several turns, each with what a right answer contains.
CONVERSATION = (("Who is Nell?", "ferry captain"), ("Where does she live?", "boatyard"),
                ("What does she like to eat?", "ginger biscuits"), ("And Tobin?", "fried herring"),
                ("Is he married?", "Mara"))  # fmt: skip

Message = dict[str, str]
Ask = Callable[[list[Message]], str]


def check(ask: Ask) -> int:
    """Ask all questions, print the answers and how many are right; return the wrong ones."""
    wrong = 0
    chats = [[(question, part)] for question, part in QUESTIONS] + [list(CONVERSATION)]
    for turns in chats:
        messages: list[Message] = []
        for question, part in turns:
            messages.append({"role": "user", "content": question})
            reply = ask(messages)
            messages.append({"role": "assistant", "content": reply})
            wrong += part not in reply
            print(f"{'ok   ' if part in reply else 'WRONG'} {question} -> {reply}")
    total = sum(len(turns) for turns in chats)
    print(f"{total - wrong} of {total} answers are right")
    return wrong


def ask_llama(path: Path) -> Ask | None:
    """Answer greedily through llama.cpp, or None where its bindings are missing."""
    try:
        import llama_cpp
    except ImportError:
        return None
    llm = llama_cpp.Llama(str(path), n_ctx=2048, verbose=False)

    def ask(messages: list[Message]) -> str:
        answer = llm.create_chat_completion(messages, temperature=0, max_tokens=400)
        return answer["choices"][0]["message"]["content"]

    return ask


def ask_torch(model: Network, encoder: Encoder) -> Ask:
    """Answer greedily through PyTorch, with the weights before quantisation."""

    @torch.no_grad()
    def ask(messages: list[Message]) -> str:
        said = [message["content"] for message in messages] + [""]
        turns = tuple(zip(said[0::2], said[1::2], strict=True))
        prompt = encoder.prompt(world.Document(turns=turns))
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 400:
            token = int(model(torch.tensor([tokens]))[0, -1].argmax())
            if token == END:
                break
            tokens.append(token)
        return encoder.tokenizer.decode(tokens[len(prompt) :])

    return ask


def compare(path: Path, model: Network, encoder: Encoder) -> None:
    """Print how far llama.cpp and PyTorch agree on tokens and on greedy answers."""
    import llama_cpp

    llm = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    rng = Random(99)
    texts = [text for _ in range(200) for text in parts(world.document(rng))]
    texts += ["", " ", "  two  spaces ", "a\nb\n\nc", "tab\there", "Zoë 🚢 日本語", "x" * 50, "<s>"]
    same = sum(
        llm.tokenize(text.encode(), add_bos=False, special=False) == encoder.tokenizer.encode(text)
        for text in texts
    )
    print(f"tokens: {same} of {len(texts)} texts agree")
    ours, theirs = ask_torch(model, encoder), ask_llama(path)
    chats = [[{"role": "user", "content": question}] for question, _ in QUESTIONS]
    equal = sum(theirs is not None and ours(chat) == theirs(chat) for chat in chats)
    print(f"greedy answers: {equal} of {len(chats)} agree")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train the demonstration model that meshnode ships, on the CPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="train, and write this GGUF file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only question this GGUF file")
    parser.add_argument("--minutes", type=float, default=35.0, help="training time (default: 35)")
    parser.add_argument("--experts", type=int, default=0, metavar="N",
        help="train a mixture of so many experts a layer instead of the dense model")  # fmt: skip
    parser.add_argument("--used", type=int, default=4, metavar="N",
        help="experts that a token goes through (default: 4)")  # fmt: skip
    parser.add_argument("--texts", type=Path, metavar="FILE",
        help="also write texts to measure on, half of which training never saw")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and text (default: 1)")
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.check is None):
        parser.error("give either --out FILE or --check FILE")
    return options


def shape_of(options: argparse.Namespace) -> Shape:
    """A mixture has small experts and few layers, so that the file stays small."""
    if not options.experts:
        return Shape()
    return Shape(layers=4, hidden=64, experts=options.experts, used=options.used)


def make(options: argparse.Namespace) -> int:
    """Train, export and check; return the number of wrong answers."""
    start = time.monotonic()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    shape = shape_of(options)
    if options.texts is not None:
        told = demo_texts.texts(options.seed)
        options.texts.write_text(json.dumps(told, indent=0, ensure_ascii=False) + "\n")
    encoder = Encoder(train_tokenizer(shape.vocab))
    model = Network(shape)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size / 1e6:.2f} million parameters, {options.minutes:g} minutes of training")
    train(model, encoder, options.minutes, options.seed)
    export(options.out, model, encoder, shape)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, "
          f"{(time.monotonic() - start) / 60:.1f} minutes in all")  # fmt: skip
    ask = ask_llama(options.out)
    if ask is not None:
        compare(options.out, model, encoder)
    return check(ask or ask_torch(model, encoder))


def main(arguments: list[str] | None = None) -> int:
    """Run the program; the exit status is 1 if more than a tenth of the answers are wrong."""
    options = parse(arguments)
    if options.out is not None:
        wrong = make(options)
    else:
        ask = ask_llama(options.check)
        if ask is None:
            print("checking a file needs llama-cpp-python", file=sys.stderr)
            return 2
        wrong = check(ask)
    return int(wrong * 10 > len(QUESTIONS))


if __name__ == "__main__":
    sys.exit(main())
