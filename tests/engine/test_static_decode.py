"""Captured decode gives the same tokens as steps that are built one by one."""

from __future__ import annotations

import random

import pytest
import torch
from fakes.checkpoints import write_checkpoint
from fakes.host_syncs import HostSyncs, watch_copies
from fakes.requests import ask, drain, tokens_of
from fakes.static_ops import EagerCapture, StaticOps

from cortex.engine.engine import Engine
from cortex.engine.load import checkpoint
from cortex.engine.request import Request, SamplingParams
from cortex.engine.sequence import Sequence
from cortex.engine.static_decode import DeviceTables, buckets
from cortex.errors import LoadCancelled


@pytest.fixture
def capture(monkeypatch) -> EagerCapture:
    """From here on engines are opened with programs."""
    made = EagerCapture()
    monkeypatch.setattr(checkpoint, "choose", StaticOps)
    monkeypatch.setattr(checkpoint, "capture_for", lambda device, ops: made)
    return made


def work(engine: Engine) -> dict[str, list[object]]:
    rng = random.Random(3)
    for name in ("long", "longer"):  # which outgrow a small cache together
        engine.add(ask(name, range(31), max_tokens=60, salt=name.encode()))
    for number in range(11):
        prompt = [rng.randrange(97) for _ in range(rng.choice((1, 5, 31, 32, 33, 64, 90)))]
        sampling = (
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=1.5, seed=number, top_k=20, top_p=0.9),
            SamplingParams(temperature=0.9, seed=number, min_p=0.05),
            SamplingParams(temperature=1.0, seed=number, frequency_penalty=0.5, logprobs=2),
            SamplingParams(temperature=0.0, logprobs=3),
            SamplingParams(temperature=0.7, seed=number, logit_bias=((5, 3.0),)),
        )[number % 6]
        engine.add(
            ask(
                str(number),
                prompt,
                max_tokens=rng.choice((3, 12, 60)),
                min_tokens=number % 4,
                stop_ids=frozenset({3, 50, 51}),
                sampling=sampling,
            )
        )
    return drain(engine)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("blocks", [None, 5])
def test_programs_give_what_steps_give(open_tiny, tmp_path, request, blocks, overlap, window):
    directory = write_checkpoint(tmp_path, sliding_window=window, use_sliding_window=bool(window))
    options = {"directory": directory, "blocks": blocks, "max_batch": 6, "max_batch_tokens": 256}
    wanted = work(open_tiny(**options))
    made = request.getfixturevalue("capture")
    engine = open_tiny(**options, overlap=overlap)
    engine.scheduler.look_ahead = 0  # so that some are preempted
    found = work(engine)
    assert made.captured == len(buckets(6))
    assert made.replayed > 20
    for name, events in wanted.items():
        assert [(e.token, e.finish) for e in found[name]] == [(e.token, e.finish) for e in events]
        for one, other in zip(events, found[name], strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            if one.logprob is not None:
                assert other.logprob.logprob == pytest.approx(one.logprob.logprob, abs=1e-4)
                assert [t for t, _ in other.logprob.top] == [t for t, _ in one.logprob.top]
    if blocks is not None:
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_program_is_looked_at_once(open_tiny, capture, monkeypatch, logprobs):
    engine = open_tiny(overlap=True)
    for number in range(3):
        sampling = SamplingParams(temperature=0.8, top_p=0.9, seed=number, logprobs=logprobs)
        engine.add(ask(str(number), [1, 2, number], max_tokens=40, sampling=sampling))
    while engine.stats().waiting or engine.scheduler.running[-1].remaining > 1:
        engine.step()
    copies = watch_copies(monkeypatch)
    for _ in range(20):
        copies.clear()
        with HostSyncs() as syncs:
            assert len(engine.step()) == 3
        assert syncs.seen == []
        assert copies == [(3 * (2 if logprobs is None else 3 + 2 * logprobs),)]
    assert capture.replayed >= 20


def test_rows_without_a_sequence_write_to_the_scrap_block_alone(open_tiny, capture):
    engine = open_tiny(blocks=8, max_batch=5)
    cache = engine._runner.cache
    untouched = [t.clone() for t in (*cache.keys, *cache.values)]
    for number in range(3):  # of 5 rows in the smallest program that takes them
        engine.add(ask(str(number), [number + 1], max_tokens=6))
    tokens = drain(engine)
    held = {0, 1, 2, cache.scrap_block}
    for before, after in zip(untouched, (*cache.keys, *cache.values), strict=True):
        changed = {b for b in range(len(after)) if not torch.equal(before[b], after[b])}
        assert len(changed - {cache.scrap_block}) <= len(held)
        assert cache.null_block not in changed
    assert all(len(tokens_of(events)) == 6 for events in tokens.values())


def test_a_load_that_is_cancelled_captures_no_more(open_tiny, capture):
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    with pytest.raises(LoadCancelled):
        open_tiny(progress=progress, cancelled=lambda: stages[-1:] == ["graphs"])
    assert capture.captured == 0


def test_every_batch_fits_a_program_with_little_waste():
    for max_batch in (1, 2, 3, 5, 8, 13, 64, 70, 256):
        sizes = buckets(max_batch)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == max_batch
        for rows in range(1, max_batch + 1):
            size = next(s for s in sizes if s >= rows)
            assert size - rows < max(8, size // 2 + 1, 32 * (size > 64))


def test_tables_show_what_is_held_now_whoever_had_the_row_before():
    tables = DeviceTables(rows=2, blocks=4, scrap_block=9, device=torch.device("cpu"))

    def sequence(row: int, blocks: list[int]) -> Sequence:
        request = Request("r", (1,), SamplingParams(), 5)
        return Sequence(request, seed=0, limit=9, arrival=0, row=row, blocks=blocks)

    one, two = sequence(0, [5, 6]), sequence(1, [7])
    tables.show([one, two])
    one.blocks.append(3)
    tables.show([one])
    assert tables.blocks.tolist() == [[5, 6, 3, 9], [7, 9, 9, 9], [9, 9, 9, 9]]
    again = sequence(0, [2])
    tables.show([again])
    assert tables.blocks[0].tolist()[:1] == [2]
    again.blocks, again.preemptions = [4, 1], 1
    tables.show([again])
    assert tables.blocks[0].tolist()[:2] == [4, 1]
