"""Trains cortex/demo and writes the artefact: ``python packaging/demo_model/train.py``.

Seeded; on two cores with AVX-512 bfloat16 it takes under half an hour. Needs torch, tokenizers,
safetensors and jinja2, no network and no transformers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F
from dialogues import HERE, Sample, Source
from make_tokenizer import train_tokenizer, write_tokenizer
from model import Network, Shape
from render import TEMPLATE_FILE, Renderer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

ARTEFACT = HERE.parent.parent / "cortex" / "neuron" / "demo"
CORPUS_SEED = 31313  # the tokenizer stays the same whatever --seed is
SHARD = 48  # batches drawn and sorted by length together
MULTIPLE = 16  # batch lengths are padded to multiples of this
LONGEST = 1024  # longer samples are left out
COPY_ROWS, COPY_LENGTH = 32, 96  # a batch of the copying stage
COPIED = 0.1  # the loss at which that stage ends
REMIND = 5  # every so many steps of training there is one more step of copying
GAP = 30000  # positions jump by up to this, for prompts longer than any in training


@attrs.frozen
class Batch:
    """Right-padded [batch, time]; *labels* is -100 where there is no loss."""

    tokens: Tensor
    positions: Tensor
    labels: Tensor


def encode(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], int]:
    """Token ids and how many of them are prompt."""
    prompt: list[int] = tokenizer.encode(sample.prompt, add_special_tokens=False).ids
    target: list[int] = tokenizer.encode(sample.target, add_special_tokens=False).ids
    return prompt + target, len(prompt)


def make_batch(rng: random.Random, rows: list[tuple[list[int], int]], pad: int) -> Batch:
    longest = max(len(ids) for ids, _ in rows) - 1
    time_steps = -(-longest // MULTIPLE) * MULTIPLE
    tokens = torch.full((len(rows), time_steps), pad)
    labels = torch.full((len(rows), time_steps), -100)
    positions = torch.arange(time_steps).repeat(len(rows), 1)
    for i, (ids, prompt) in enumerate(rows):
        sequence = torch.tensor(ids)
        tokens[i, : len(ids) - 1] = sequence[:-1]
        begin = max(prompt - 1, 0)
        labels[i, begin : len(ids) - 1] = sequence[begin + 1 :]
        if prompt > 60 and rng.random() < 0.5:
            positions[i, rng.randrange(1, prompt - 40) :] += int(GAP * rng.random() ** 3)
    return Batch(tokens, positions, labels)


def batches(source: Source, tokenizer: Tokenizer, seed: int, size: int) -> Iterator[Batch]:
    """Endless batches of about *size* tokens, each of samples of about the same length."""
    rng = random.Random(seed)
    pad = tokenizer.token_to_id("<|endoftext|>")
    while True:
        rows: list[tuple[list[int], int]] = []
        total = 0
        while total < size * SHARD:
            row = encode(tokenizer, source.draw(rng))
            if len(row[0]) <= LONGEST:
                rows.append(row)
                total += len(row[0])
        rows.sort(key=lambda row: len(row[0]))
        cut: list[list[tuple[list[int], int]]] = [[]]
        for row in rows:
            if (len(cut[-1]) + 1) * len(row[0]) > size:
                cut.append([])
            cut[-1].append(row)
        rng.shuffle(cut)
        yield from (make_batch(rng, part, pad) for part in cut if part)


def loss_of(network: Network, batch: Batch, dtype: torch.dtype) -> Tensor:
    hidden = network(batch.tokens, batch.positions, dtype)
    wanted = batch.labels >= 0
    logits = F.linear(hidden[wanted], network.embed_tokens.weight)
    return F.cross_entropy(logits.float(), batch.labels[wanted])


def optimisers(network: Network, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in network.layers.parameters() if p.dim() == 2]
    rest = [p for p in network.parameters() if p.dim() != 2]
    return [
        torch.optim.Muon(
            matrices, lr=rate, weight_decay=0.05, ns_steps=4, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": [network.embed_tokens.weight], "weight_decay": 0.05},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(0.9, 0.98),
        ),
    ]


def copying_batch(rng: random.Random, vocab: int) -> Batch:
    """Random tokens, again and again; the loss is on all but their first time.

    Every row has a period of its own, so that only finding the same token earlier helps.
    """
    tokens = torch.empty(COPY_ROWS, COPY_LENGTH, dtype=torch.long)
    labels = torch.full((COPY_ROWS, COPY_LENGTH), -100)
    for i in range(COPY_ROWS):
        period = rng.randint(6, COPY_LENGTH // 2)
        once = [rng.randrange(vocab) for _ in range(period)]
        row = torch.tensor(once * (COPY_LENGTH // period + 2))
        tokens[i] = row[:COPY_LENGTH]
        labels[i, period:] = row[period + 1 : COPY_LENGTH + 1]
    return Batch(tokens, torch.arange(COPY_LENGTH).repeat(COPY_ROWS, 1), labels)


def update(
    network: Network, tuned: list[torch.optim.Optimizer], batch: Batch, rate: float
) -> float:
    """One step at learning rate *rate*; the loss before it."""
    for optimiser in tuned:
        for group in optimiser.param_groups:
            group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(network, batch, torch.bfloat16)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimiser in tuned:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss.item()


def learn_to_copy(
    network: Network, tuned: list[torch.optim.Optimizer], shape: Shape, options: argparse.Namespace
) -> None:
    """Nothing but copying until that works: mixed in with the rest it takes many times as long."""
    rng = random.Random(options.seed)
    for step in range(options.copying):
        batch = copying_batch(rng, shape.vocab)
        loss = update(network, tuned, batch, options.rate * min((step + 1) / 30, 1.0))
        if step % 20 == 0:
            print(f"copying {step} loss {loss:.4f}", flush=True)
        if loss < COPIED:
            print(f"copying learnt in {step} steps", flush=True)
            return


def save(network: Network, tokenizer: Tokenizer, shape: Shape, directory: Path) -> None:
    """Everything but the chat template, which is written by hand, and the sums of all files."""
    ids = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    config = shape.config(ids, ids[1])
    generation = {
        "do_sample": False,
        "temperature": 0.0,
        "eos_token_id": ids,
        "pad_token_id": ids[1],
    }
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(tokenizer, directory, shape.context)
    partial = directory / "model.safetensors.partial"  # a reader never sees half a file
    save_file(network.checkpoint(), partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(directory / "model.safetensors")
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != "SHA256SUMS")
    sums = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    (directory / "SHA256SUMS").write_text(sums, encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ARTEFACT, help="directory of the artefact")
    parser.add_argument("--seed", type=int, default=31313)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument(
        "--tokens", type=int, default=6144, help="tokens per step, padding included"
    )
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--copying", type=int, default=300, help="most steps of the copying stage")
    parser.add_argument("--start", type=Path, help="directory of an artefact to go on from")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shape = Shape()
    source = Source(Renderer.from_directory(ARTEFACT))
    tokenizer = train_tokenizer(source.corpus(random.Random(CORPUS_SEED)), shape.vocab)
    network = Network(shape)
    count = sum(p.numel() for p in network.parameters())
    print(f"{count} parameters, {len(source.questions)} questions", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.out != ARTEFACT:
        (options.out / TEMPLATE_FILE).write_bytes((ARTEFACT / TEMPLATE_FILE).read_bytes())
    if options.start:
        weights = load_file(options.start / "model.safetensors")
        network.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})
    tuned = optimisers(network, options.rate)
    learn_to_copy(network, tuned, shape, options)
    rng = random.Random(options.seed + 1)
    started, seen = time.monotonic(), 0
    feed = batches(source, tokenizer, options.seed, options.tokens)
    for step in range(options.steps):
        done = step / options.steps
        scale = min((step + 1) / 60, 1.0) * min(1.0, (1 - done) / 0.7)
        batch = next(feed)
        loss = update(network, tuned, batch, options.rate * scale)
        if step % REMIND == 0 and options.copying:
            update(network, tuned, copying_batch(rng, shape.vocab), options.rate * scale)
        seen += batch.tokens.numel()
        if step % 20 == 0:
            spent = time.monotonic() - started
            print(f"{step} loss {loss:.4f} {spent:.0f} s {seen / spent:.0f} tok/s", flush=True)
        if (step + 1) % options.save_every == 0:
            save(network, tokenizer, shape, options.out)
    save(network, tokenizer, shape, options.out)
    print(f"done in {time.monotonic() - started:.0f} s, {seen} tokens", flush=True)


if __name__ == "__main__":
    main()
