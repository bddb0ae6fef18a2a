"""A whole neuron with the demonstration model, in a thread of its own, asked over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.neuron import app

DEMO = "cortex/demo"
QUESTION = "What is cortex?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
THINKING = {"enable_thinking": True}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def chunks_of(lines: Iterator[str]) -> Iterator[Any]:
    """The data of an event stream, parsed; ``[DONE]`` as that string."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


@attrs.define(eq=False)
class DemoNeuron:
    """A neuron that runs; ``stop`` lets it drain and end."""

    url: str
    client: httpx.Client
    _token: trio.lowlevel.TrioToken
    _stop: trio.Event
    thread: threading.Thread

    def ask(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return self.client.post(path, json={"model": DEMO, **body}, **options)

    def chat(self, text: str = QUESTION, **fields: Any) -> Any:
        """A chat completion's body; it must be a 200."""
        response = self.ask("/v1/chat/completions", {"messages": user(text), **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def complete(self, prompt: Any, **fields: Any) -> Any:
        response = self.ask("/v1/completions", {"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
        """All chunks of a streamed answer, ``[DONE]`` last; *headers* are the request's."""
        headers = fields.pop("headers", None)
        if path.endswith("chat/completions"):
            fields.setdefault("messages", user(QUESTION))
        body = {"model": DEMO, "stream": True, **fields}
        with self.client.stream("POST", path, json=body, headers=headers) as response:
            assert response.status_code == 200, response.read()
            return list(chunks_of(response.iter_lines()))

    @contextmanager
    def streaming(self, **fields: Any) -> Iterator[httpx.Response]:
        """A streamed chat completion on a connection of its own, closed on leaving."""
        body = {"model": DEMO, "stream": True, "messages": user(QUESTION), **fields}
        with (
            httpx.Client(base_url=self.url, headers=self.client.headers, timeout=30) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            yield response

    def load_figures(self) -> Any:
        """What ``/health`` tells of the model."""
        return self.client.get("/health").json()["models"][0]

    def metric(self, line: str) -> float:
        """The value of the sample *line* (name and labels); 0 where it is not there yet."""
        for text in self.client.get("/metrics").text.splitlines():
            if text.startswith(f"{line} "):
                return float(text.rpartition(" ")[2])
        return 0.0

    def stop(self) -> None:
        self._token.run_sync_soon(self._stop.set)


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """*holds* comes true within *seconds*."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@contextmanager
def demo_neuron(state: Path, **settings: Any) -> Iterator[DemoNeuron]:
    """The application of `cortex.neuron.app` on a free port, its model loaded."""
    config = NeuronConfig(
        listen="127.0.0.1:0",
        default_models=(DefaultModel(DEMO),),
        state_directory=state,
        threads=1,
        **{"offline": True, "hf_cache": state / "hub", "drain_seconds": 5.0, **settings},
    )
    started: list[tuple[str, trio.lowlevel.TrioToken, trio.Event]] = []
    ready = threading.Event()

    async def main() -> None:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            url = await nursery.start(partial(app.run, config, stop=stop.wait))
            started.append((url, trio.lowlevel.current_trio_token(), stop))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,), name="neuron")
    thread.start()
    assert ready.wait(60)
    (url, token, stop) = started[0]
    headers = {} if config.token is None else {"authorization": f"Bearer {config.token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        neuron = DemoNeuron(url, client, token, stop, thread)
        try:
            eventually(
                lambda: client.get("/models").json()[0]["status"] == "loaded", 60, "the demo loads"
            )
            yield neuron
        finally:
            if thread.is_alive():
                neuron.stop()
                thread.join(30)
            assert not thread.is_alive()
