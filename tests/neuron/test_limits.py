"""What a whole neuron takes, and with which numbers it refuses the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.demo_neuron import DEMO, DemoNeuron, demo_neuron, eventually

CONTEXT = 64
WAIT = 0.2  # seconds


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNeuron]:
    state = tmp_path_factory.mktemp("limits")
    with demo_neuron(state, max_batch=1, queue_wait_seconds=WAIT) as it:
        yield it


def reload(neuron: DemoNeuron, **options: object) -> None:
    neuron.client.post("/models/unload", json={"model_id": DEMO}).raise_for_status()
    asked = {"model_id": DEMO, **options}
    neuron.client.post("/models/load", json=asked).raise_for_status()


def test_the_context_that_is_published_is_the_one_that_is_enforced(neuron: DemoNeuron) -> None:
    reload(neuron, context=CONTEXT)
    (model,) = neuron.client.get("/models").json()
    assert model["limit"]["context"] == CONTEXT
    served = neuron.complete([5] * (CONTEXT - 1), max_tokens=9, ignore_eos=True)
    assert served["usage"]["prompt_tokens"] == CONTEXT - 1
    assert served["usage"]["completion_tokens"] == 1
    assert served["choices"][0]["finish_reason"] == "length"
    for length in (CONTEXT, 10 * CONTEXT):
        refused = neuron.ask("/v1/completions", {"prompt": [5] * length, "max_tokens": 1})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert (error["prompt_tokens"], error["context"]) == (length, CONTEXT)
        assert "retry-after" not in refused.headers


def test_who_waits_too_long_is_told_so_whole_or_streamed(neuron: DemoNeuron) -> None:
    reload(neuron)
    with neuron.streaming(max_tokens=4000, ignore_eos=True) as holding:
        lines = holding.iter_lines()
        next(lines)
        refused = neuron.ask("/v1/completions", {"prompt": [9], "max_tokens": 1})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert error["code"] == "overloaded"
        assert error["waited_seconds"] >= WAIT
        assert (error["running"], error["kv_blocks_needed"]) == (1, 1)
        streamed = neuron.stream("/v1/completions", prompt=[9], max_tokens=1)
        assert "[DONE]" not in streamed
        assert streamed[-1]["error"]["code"] == "overloaded"
        assert next(line for line in lines if line)  # who runs goes on
    eventually(lambda: not neuron.load_figures()["in_flight"], 5, "the client's leaving is seen")
    assert neuron.complete([9], max_tokens=1)["usage"]["completion_tokens"] == 1
