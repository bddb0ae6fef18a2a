"""Measures cortex/demo from its files: ``python packaging/demo_model/evaluate.py [directory]``.

Greedy, without a system prompt, thinking off, as `cortex up` serves it. Needs transformers.
Word for word means equal texts after stripping white space at both ends.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from dialogues import END, SYSTEMS, Sample, Source
from render import Renderer
from train import ARTEFACT
from transformers import AutoTokenizer, Qwen3ForCausalLM

HELD_SEED = 13131  # no training draw uses it
BATCH = 32


class Model:
    """The checkpoint in transformers; *dtype* is what it computes in."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.network: Any = Qwen3ForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self.renderer = Renderer.from_directory(directory)

    @torch.inference_mode()
    def answers(self, prompts: list[str], limit: int = 384) -> list[str]:
        """Greedy continuations, special tokens kept but the end marker."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found = [""] * len(prompts)
        self.tokenizer.padding_side = "left"
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            encoded = self.tokenizer(
                [prompts[i] for i in part],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            )
            out = self.network.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=limit,
                do_sample=False,
            )
            for i, row in zip(part, out[:, encoded["input_ids"].shape[1] :], strict=True):
                text = self.tokenizer.decode(row, skip_special_tokens=False)
                found[i] = text.split(END)[0].split("<|endoftext|>")[0]
        return found

    def ask(self, questions: list[str], **options: Any) -> list[str]:
        prompts = [
            self.renderer.prompt([{"role": "user", "content": question}], **options)
            for question in questions
        ]
        return self.answers(prompts)


def report(name: str, expected: list[str], got: list[str], shown: list[str], show: int) -> float:
    wrong = [i for i in range(len(got)) if got[i].strip() != expected[i].strip()]
    share = 1 - len(wrong) / len(got)
    print(f"{name:<44} {share:7.1%}  ({len(got) - len(wrong)} of {len(got)})", flush=True)
    for i in wrong[:show]:
        print(f"    {shown[i][-120:]!r}")
        print(f"      want {expected[i][:150]!r}\n      got  {got[i][:150]!r}")
    return share


def samples_of(draw: Any, count: int, keep: Any = lambda sample: True) -> list[Sample]:
    rng = random.Random(HELD_SEED)
    kept: list[Sample] = []
    while len(kept) < count:
        sample = draw(rng)
        if keep(sample):
            kept.append(sample)
    return kept


def measure(model: Model, source: Source, count: int, show: int) -> None:
    def run(name: str, asked: list[tuple[str, str]], **options: Any) -> None:
        questions, expected = [q for q, _ in asked], [a for _, a in asked]
        report(name, expected, model.ask(questions, **options), questions, show)

    run("question list", [(e.ask[0], e.answer) for e in source.questions])
    run(
        "question list, all trained forms", [(q, e.answer) for e in source.questions for q in e.ask]
    )
    run("small talk", [(q, e.answer) for e in source.small_talk[:-1] for q in e.ask])
    run("held-out paraphrases", [(q, e.answer) for e in source.questions for q in e.held])
    run("held-out small talk", [(q, e.answer) for e in source.small_talk for q in e.held])

    asked = [(e.ask[0], e.answer) for e in source.questions]
    prompts = [
        model.renderer.prompt(
            [{"role": "system", "content": SYSTEMS[0]}, {"role": "user", "content": q}]
        )
        for q, _ in asked
    ]
    report(
        "question list, system prompt", [a for _, a in asked], model.answers(prompts), prompts, show
    )

    def drawn(name: str, samples: list[Sample]) -> None:
        expected = [s.target.removesuffix(END) for s in samples]
        prompts = [s.prompt for s in samples]
        report(name, expected, model.answers(prompts), prompts, show)

    drawn(
        "new tool calls", samples_of(source.tool_sample, count, lambda s: "<tool_call>" in s.target)
    )
    drawn(
        "answers from new tool results",
        samples_of(source.tool_sample, count, lambda s: "<tool_call>" not in s.target),
    )
    drawn("conversations", samples_of(lambda rng: source.question_sample(rng, 2), count))
    drawn("thinking", samples_of(source.question_sample, count, lambda s: "<think>" in s.target))
    drawn("copying", samples_of(source.repeat_sample, count))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path, nargs="?", default=ARTEFACT)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--count", type=int, default=100, help="how many samples to draw per kind")
    parser.add_argument(
        "--show", type=int, default=0, help="how many wrong answers to print per kind"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    model = Model(options.directory, getattr(torch, options.dtype))
    measure(model, Source(model.renderer), options.count, options.show)
    print(f"{time.monotonic() - began:.0f} s, {options.dtype}")


if __name__ == "__main__":
    main()
