"""The engine as a whole: the same tokens whatever runs beside a request, and honest events."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import write_checkpoint
from fakes.decoding import forward, greedy_oracle
from fakes.host_syncs import HostSyncs, watch_copies
from fakes.requests import ask, drain, tokens_of

from cortex.engine.engine import Engine
from cortex.engine.layers import attention
from cortex.engine.request import (
    FinishReason,
    RequestFailed,
    SamplingParams,
    TokenEvent,
)


def prompts(seed: int = 0) -> list[list[int]]:
    """Of many lengths, two of them with a long common prefix."""
    rng = random.Random(seed)
    found = [[rng.randrange(97) for _ in range(n)] for n in (1, 5, 31, 32, 33, 64, 70, 90, 120)]
    found.append([*found[-1][:100], 3, 4, 5])
    return found


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[list[int]]:
    return [greedy_oracle(tiny, prompt, 12) for prompt in prompts()]


def run_all(engine: Engine, **options: object) -> list[list[int]]:
    for i, prompt in enumerate(prompts()):
        engine.add(ask(str(i), prompt, max_tokens=12, **options))
    events = drain(engine)
    return [tokens_of(events[str(i)]) for i in range(len(prompts()))]


def test_one_by_one_is_the_full_recompute(open_tiny, expected):
    engine = open_tiny()
    for i, prompt in enumerate(prompts()):
        engine.add(ask(str(i), prompt, max_tokens=12, salt=bytes([i])))
        assert tokens_of(drain(engine)[str(i)]) == expected[i]
    assert engine.stats().prefix_hit_tokens == 0


@pytest.mark.parametrize("budget", [1, 3, 7, 16, 33, 100, 512])
def test_chunking_and_batch_mix_change_nothing(open_tiny, expected, budget):
    engine = open_tiny(max_batch=min(budget, 8), max_batch_tokens=budget)
    assert run_all(engine) == expected


def test_a_prefix_hit_changes_nothing(open_tiny, expected):
    engine = open_tiny(max_batch=4, max_batch_tokens=40)
    assert run_all(engine) == expected
    before = engine.stats().prefix_hit_tokens
    assert run_all(engine) == expected
    assert engine.stats().prefix_hit_tokens - before >= 300


def test_preemption_changes_nothing(open_tiny):
    directory_prompts = [[(7 * i + j) % 97 for j in range(30)] for i in range(6)]
    alone = open_tiny()
    wanted = []
    for i, prompt in enumerate(directory_prompts):
        alone.add(ask(str(i), prompt, max_tokens=90))
        wanted.append(tokens_of(drain(alone)[str(i)]))
    crowded = open_tiny(blocks=8, max_batch=6, max_batch_tokens=64)
    crowded.scheduler.look_ahead = 0
    for i, prompt in enumerate(directory_prompts):
        crowded.add(ask(str(i), prompt, max_tokens=90))
    events = drain(crowded)
    assert crowded.stats().preemptions > 0
    assert [tokens_of(events[str(i)]) for i in range(6)] == wanted


def test_a_sliding_window_shorter_than_everything_changes_nothing_either(open_tiny, tmp_path):
    directory = write_checkpoint(
        tmp_path, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=21
    )
    wanted = [greedy_oracle(directory, prompt, 12) for prompt in prompts()]
    for budget in (5, 64):
        engine = open_tiny(directory=directory, max_batch=5, max_batch_tokens=budget)
        assert run_all(engine) == wanted


@pytest.mark.parametrize("window", [None, 21])
def test_masks_made_in_parts_change_nothing(open_tiny, tmp_path, monkeypatch, window):
    monkeypatch.setattr(attention, "MASK_ELEMENTS", 700)
    directory = write_checkpoint(
        tmp_path,
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=window,
    )
    engine = open_tiny(directory=directory, max_batch_tokens=50, max_batch=4)
    assert run_all(engine) == [greedy_oracle(directory, prompt, 12) for prompt in prompts()]


def test_bf16_runs_and_mostly_agrees_with_fp32(open_tiny):
    prompt = prompts()[6]
    sampling = SamplingParams(temperature=0.0, logprobs=1)
    both = []
    for dtype in ("float32", "bfloat16"):
        engine = open_tiny(dtype=dtype)
        engine.add(ask("r", prompt, max_tokens=1, sampling=sampling))
        both.append(drain(engine)["r"][0])
    assert both[0].logprob.logprob == pytest.approx(both[1].logprob.logprob, abs=0.2)


def test_sampled_tokens_depend_on_the_seed_and_not_on_the_company(open_tiny):
    hot = [
        SamplingParams(temperature=1.3, seed=5),
        SamplingParams(temperature=0.9, top_k=7, seed=5),
        SamplingParams(temperature=1.1, top_p=0.8, min_p=0.01, seed=5),
        SamplingParams(temperature=1.0, frequency_penalty=0.5, seed=5),
    ]
    alone = []
    for sampling in hot:
        engine = open_tiny()
        engine.add(ask("r", prompts()[1], sampling=sampling, max_tokens=20))
        alone.append(tokens_of(drain(engine)["r"]))
    engine = open_tiny(max_batch_tokens=48)
    for i, prompt in enumerate(prompts()):
        engine.add(ask(f"noise{i}", prompt, sampling=SamplingParams(seed=i), max_tokens=30))
    for i, sampling in enumerate(hot):
        engine.add(ask(f"r{i}", prompts()[1], sampling=sampling, max_tokens=20))
    events = drain(engine)
    assert [tokens_of(events[f"r{i}"]) for i in range(len(hot))] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)


def test_without_a_seed_each_request_has_its_own(open_tiny):
    engine = open_tiny()
    for name in "ab":
        engine.add(ask(name, [1, 2, 3], sampling=SamplingParams(), max_tokens=30))
    events = drain(engine)
    assert tokens_of(events["a"]) != tokens_of(events["b"])


def test_a_stop_id_is_delivered_with_its_reason_and_ends_the_request(open_tiny, expected):
    engine = open_tiny()
    stop = expected[1][3]
    engine.add(ask("r", prompts()[1], max_tokens=12, stop_ids=frozenset({stop})))
    events = drain(engine)["r"]
    cut = expected[1].index(stop) + 1
    assert tokens_of(events) == expected[1][:cut]
    assert [event.finish for event in events] == [None] * (cut - 1) + [FinishReason.STOP]


def test_ignore_eos_goes_on_and_min_tokens_forbids_the_stop(open_tiny, expected):
    stop = frozenset({expected[1][0]})
    engine = open_tiny()
    engine.add(ask("go", prompts()[1], max_tokens=12, stop_ids=stop, ignore_eos=True))
    engine.add(ask("min", prompts()[1], max_tokens=12, stop_ids=stop, min_tokens=5))
    events = drain(engine)
    assert tokens_of(events["go"]) == expected[1]
    assert events["go"][-1].finish is FinishReason.LENGTH
    assert len(events["min"]) >= 5
    assert not stop & set(tokens_of(events["min"])[:5])


def test_the_context_ends_a_request_that_would_go_on(open_tiny):
    engine = open_tiny(context=40)
    engine.add(ask("r", range(30), max_tokens=100))
    events = drain(engine)["r"]
    assert len(events) == 10
    assert events[-1].finish is FinishReason.LENGTH


def test_the_first_event_tells_of_the_prefix_and_of_the_time(tiny, open_tiny):
    now = iter(range(1000, 2000))
    engine = open_tiny(clock=lambda: float(next(now)))
    for name in ("one", "two"):
        engine.add(ask(name, range(70), max_tokens=2))
        events = drain(engine)[name]
        assert events[1].first is None
        first = events[0].first
        assert first.cached_tokens == (0 if name == "one" else 64)
        assert first.scheduled_at >= 1000
        assert first.prompt_logprobs is None


def test_logprobs_are_those_of_the_unmodified_distribution(open_tiny):
    engine = open_tiny()
    plain = SamplingParams(temperature=0.0, logprobs=4)
    odd = SamplingParams(temperature=0.0, logprobs=2, logit_bias=((11, 100.0),))
    none = SamplingParams(temperature=0.0)
    bare = SamplingParams(temperature=0.0, logprobs=0)
    for name, sampling in {"plain": plain, "odd": odd, "none": none, "bare": bare}.items():
        engine.add(ask(name, prompts()[2], sampling=sampling, max_tokens=1, salt=name.encode()))
    events = {name: found[0] for name, found in drain(engine).items()}
    best = events["plain"].logprob
    assert best.token == events["plain"].token == best.top[0][0]
    assert best.logprob == best.top[0][1]
    assert [lp for _, lp in best.top] == sorted((lp for _, lp in best.top), reverse=True)
    assert len(best.top) == 4
    assert events["odd"].token == 11
    for (token, logprob), (best_token, best_logprob) in zip(
        events["odd"].logprob.top, best.top[:2], strict=True
    ):
        assert token == best_token
        assert logprob == pytest.approx(best_logprob, abs=1e-5)
    assert events["odd"].logprob.logprob < best.logprob
    assert events["none"].logprob is None
    assert events["bare"].logprob.top == ()


@pytest.mark.parametrize("budget", [3, 50, 400])
def test_prompt_logprobs_agree_with_the_full_recompute(open_tiny, tiny, budget):
    prompt = prompts()[7]
    engine = open_tiny(max_batch=3, max_batch_tokens=budget)
    engine.add(ask("warm", prompt, max_tokens=1))
    drain(engine)
    sampling = SamplingParams(temperature=0.0, prompt_logprobs=True, logprobs=1)
    engine.add(ask("r", prompt, sampling=sampling, max_tokens=2))
    engine.add(ask("other", prompts()[6], max_tokens=9))
    found = drain(engine)["r"][0].first.prompt_logprobs
    assert found[0] is None
    assert len(found) == len(prompt)
    wanted = torch.log_softmax(forward(tiny, prompt), -1)
    for position in range(1, len(prompt)):
        entry = found[position]
        assert entry.token == prompt[position]
        row = wanted[position - 1]
        assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-4)
        assert entry.top[0][1] == pytest.approx(float(row.max()), abs=1e-4)


def test_an_abort_frees_everything_and_yields_no_event(open_tiny):
    engine = open_tiny(max_batch=1)
    engine.add(ask("running", range(40), max_tokens=50))
    engine.add(ask("waiting", range(40), max_tokens=50))
    engine.step()
    assert engine.abort("waiting")
    assert engine.abort("running")
    assert not engine.abort("running")
    assert not engine.abort("never")
    assert engine.stats().kv_blocks_used == 0
    assert not engine.has_work
    assert engine.step() == []


def test_what_can_never_run_is_refused_when_it_is_added(open_tiny):
    engine = open_tiny(context=64)
    engine.add(ask("r", [1]))
    with pytest.raises(ValueError, match="in use"):
        engine.add(ask("r", [1]))
    with pytest.raises(ValueError, match="64"):
        engine.add(ask("long", range(64)))
    with pytest.raises(ValueError, match="vocabulary"):
        engine.add(ask("alien", [97]))
    with pytest.raises(ValueError, match="vocabulary"):
        engine.add(ask("bias", [1], sampling=SamplingParams(logit_bias=((97, 1.0),))))
    with pytest.raises(ValueError, match="empty"):
        ask("none", [])
    with pytest.raises(ValueError, match="max_tokens"):
        ask("zero", [1], max_tokens=0)
    drain(engine)
    engine.add(ask("r", [1]))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"logprobs": -1},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, math.nan),)},
    ],
)
def test_sampling_params_out_of_range_are_refused(values):
    with pytest.raises(ValueError):
        SamplingParams(**values)


def poison(engine: Engine, token: int) -> None:
    """Whoever has *token* in the prompt gets logits that are not finite."""
    engine._runner.model.embedding.weight.data[token] = math.nan


def test_a_request_without_finite_logits_fails_alone(open_tiny, expected):
    engine = open_tiny(max_batch=4, max_batch_tokens=64)
    pairs = list(zip(prompts(), expected, strict=True))[:8]
    bad = min(set(range(97)).difference(*(set(p) | set(e) for p, e in pairs)))
    poison(engine, bad)
    for i, (prompt, _) in enumerate(pairs):
        engine.add(ask(f"a{i}", prompt, max_tokens=12))
        engine.add(ask(f"bad{i}", [*prompt, bad, 1], max_tokens=12))
    events = drain(engine)
    for i, (_, tokens) in enumerate(pairs):
        assert tokens_of(events[f"a{i}"]) == tokens
        assert len(events[f"bad{i}"]) == 1
        failed = events[f"bad{i}"][0]
        assert isinstance(failed, RequestFailed)
        assert isinstance(failed.error, ArithmeticError)
    assert engine.stats().kv_blocks_used == 0
    assert all(tensor.isfinite().all() for tensor in engine._runner.cache.keys)


def test_an_engine_wide_error_propagates_and_loses_no_request(open_tiny, expected, monkeypatch):
    engine = open_tiny()
    engine.add(ask("r", prompts()[4], max_tokens=12))
    engine.step()
    forward = engine._runner.model.forward

    def fault(*args: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine._runner.model, "forward", fault)
    with pytest.raises(RuntimeError, match="launch failure"):
        engine.step()
    monkeypatch.setattr(engine._runner.model, "forward", forward)
    assert tokens_of(drain(engine)["r"]) == expected[4][1:]


def test_stats_count_what_happened(open_tiny):
    engine = open_tiny(blocks=10)
    engine.add(ask("r", range(40), max_tokens=3))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 0)
    assert (stats.kv_blocks_total, stats.kv_blocks_used) == (10, 2)
    drain(engine)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generated_tokens, stats.steps) == (40, 3, 3)
    assert (stats.running, stats.kv_blocks_used) == (0, 0)
    assert engine.max_context == 256
    assert engine.kv_bytes == 12 * 32 * 512
    assert engine.weight_bytes > 0


def test_a_closed_engine_does_nothing(open_tiny):
    engine = open_tiny()
    engine.add(ask("r", [1]))
    engine.close()
    assert not engine.has_work
    assert engine.step() == []
    with pytest.raises(ValueError, match="closed"):
        engine.add(ask("s", [1]))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_looks_at_the_device_once(open_tiny, monkeypatch, overlap):
    engine = open_tiny(max_batch_tokens=64, overlap=overlap)
    kinds = [
        SamplingParams(temperature=0.0, logprobs=3),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.5, min_p=0.1, seed=1),
        SamplingParams(temperature=0.7, repetition_penalty=1.2, logit_bias=((1, 2.0),)),
        SamplingParams(temperature=0.0, prompt_logprobs=True),
    ]
    for i, sampling in enumerate(kinds):
        engine.add(ask(str(i), range(50), sampling=sampling, min_tokens=2, salt=bytes([i])))
    copies = watch_copies(monkeypatch)
    while engine.has_work:
        copies.clear()
        with HostSyncs() as syncs:
            events = engine.step()
        assert syncs.seen == []
        assert len(copies) <= 1
        assert not events or overlap or len(copies) == 1


def test_events_are_token_events(open_tiny):
    engine = open_tiny()
    engine.add(ask("r", [1, 2], max_tokens=1))
    (event,) = engine.step()
    assert isinstance(event, TokenEvent)
    assert event.request_id == "r"
