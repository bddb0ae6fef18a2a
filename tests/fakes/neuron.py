"""A neuron without a model: the real routes over real sockets, with scripted answers.

Runs in the test's own trio loop on a port of its own. Everything it was asked is kept in
``requests``; what it answers is plain data that a test may change at any time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs
import h11
import trio

from cortex.config.gateway import NeuronNode

MAX_RECEIVE = 64 * 1024


@attrs.frozen
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.frozen
class Reply:
    """A scripted answer. ``frames`` are written one by one, as one chunk each.

    A frame is bytes, a number of seconds to wait, or an event to wait for. ``abort`` drops the
    connection where the answer's end should be.
    """

    status: int = 200
    frames: Iterable[bytes | float | trio.Event] = ()
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    abort: bool = False


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    shown = tuple((key.replace("_", "-"), value) for key, value in headers.items())
    return Reply(status, (json.dumps(value).encode(),), headers=shown)


def error_reply(
    status: int, code: str, message: str = "scripted failure", *, retry_after: int | None = None
) -> Reply:
    body = {"error": {"message": message, "type": "api_error", "code": code, "param": None}}
    return json_reply(
        body, status, **({} if retry_after is None else {"retry_after": str(retry_after)})
    )


def chunk(model: str, delta: dict[str, Any] | None, **more: Any) -> bytes:
    """One frame of a chat completion stream; no choice when *delta* is None."""
    finish = more.pop("finish_reason", None)
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@attrs.define(eq=False)
class FakeNeuron:
    """``run`` serves until cancelled or `kill`ed; it may be run again, on the same port."""

    name: str = "fake"
    token: str | None = None
    port: int = 0
    devices: list[dict[str, Any]] = attrs.field(
        factory=lambda: [{"index": 0, "name": "Fake GPU", "kind": "cuda", "vram_total_mb": 24_000}]
    )
    free_mb: dict[int, int | None] = attrs.field(factory=lambda: {0: 20_000})
    models: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    sizes: dict[str, int] = attrs.field(factory=dict)  # MiB of device 0 that models take
    health_status: str = "ok"
    lost: dict[int, str] = attrs.field(
        factory=dict
    )  # devices that are in no working order, and why
    activation: dict[str, Any] = attrs.field(factory=dict)
    model_loads: list[dict[str, Any]] = attrs.field(factory=list)
    advertised: str | None = None  # None: where it listens
    words: tuple[str, ...] = ("Hello", ",", " world")
    load_gate: trio.Event | None = None  # loads wait for it
    load_reply: Reply | None = None  # instead of loading
    scripts: dict[str, Callable[[Asked], Reply | None]] = attrs.field(factory=dict)  # by path
    requests: list[Asked] = attrs.field(factory=list)
    counts: Counter[str] = attrs.field(factory=Counter)  # by path
    in_flight: int = 0  # inference requests being answered now
    most_in_flight: int = 0
    _scope: trio.CancelScope | None = None
    _started_at: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def configured(self) -> NeuronNode:
        """Its entry in a gateway's configuration."""
        return NeuronNode(self.name, self.url, token=self.token)

    def hold(self, model_id: str, status: str = "loaded", **more: Any) -> dict[str, Any]:
        """Have the model, in that status, and its memory taken."""
        if model_id not in self.models:
            self._take(self.sizes.get(model_id, 0))
        self.models[model_id] = {"id": model_id, "status": status, "devices": [0], **more}
        return self.models[model_id]

    def last(self, path: str) -> Asked:
        """The newest request for *path*."""
        return next(asked for asked in reversed(self.requests) if asked.path == path)

    def kill(self) -> None:
        """Drop every connection and refuse new ones."""
        assert self._scope is not None
        self._scope.cancel("killed")

    def restarted(self) -> None:
        """Report an uptime that begins again."""
        self._started_at = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._started_at = trio.current_time()
        with trio.CancelScope() as self._scope:
            task_status.started(self.url)
            await trio.serve_listeners(self._connection, listeners)

    # HTTP

    async def _connection(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            while True:
                asked = await _receive(http, stream)
                if asked is None:
                    return
                self.requests.append(asked)
                self.counts[asked.path] += 1
                if not await self._answer(http, stream, asked) or http.our_state is not h11.DONE:
                    return
                http.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the client has gone
        finally:
            with trio.move_on_after(1, shield=True):
                await stream.aclose()

    async def _answer(self, http: h11.Connection, stream: trio.SocketStream, asked: Asked) -> bool:
        inference = asked.path.startswith("/v1/")
        self.in_flight += inference
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = await self._reply(asked)
            headers = [
                ("content-type", reply.content_type),
                ("transfer-encoding", "chunked"),
                *reply.headers,
            ]
            await _send(http, stream, h11.Response(status_code=reply.status, headers=headers))
            for frame in reply.frames:
                if isinstance(frame, trio.Event):
                    await frame.wait()
                elif isinstance(frame, int | float):
                    await trio.sleep(frame)
                else:
                    await _send(http, stream, h11.Data(frame))
            if reply.abort:
                return False
            await _send(http, stream, h11.EndOfMessage())
            return True
        finally:
            self.in_flight -= inference

    async def _reply(self, asked: Asked) -> Reply:
        if self.token is not None and asked.headers.get("authorization") != f"Bearer {self.token}":
            return error_reply(401, "invalid_api_key", "the token is missing or wrong")
        script = self.scripts.get(asked.path)
        scripted = script(asked) if script is not None else None
        if scripted is not None:
            return scripted
        routes: dict[tuple[str, str], Callable[[Asked], Awaitable[Reply]]] = {
            ("GET", "/discovery"): self._discovery,
            ("GET", "/version"): self._version,
            ("GET", "/health"): self._health,
            ("GET", "/models"): self._models,
            ("POST", "/restart"): self._restart,
            ("POST", "/models/load"): self._load,
            ("POST", "/models/unload"): self._unload,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._chat,
        }
        route = routes.get((asked.method, asked.path))
        if route is not None:
            return await route(asked)
        if asked.path.startswith("/models/") and asked.path.endswith("/endpoint"):
            return self._endpoint(asked.path[len("/models/") : -len("/endpoint")])
        return error_reply(404, "not_found", f"no route {asked.path}")

    # Management

    async def _discovery(self, asked: Asked) -> Reply:
        return json_reply(
            {"hostname": self.name, "os": "linux", "kernel": "6", "devices": self.devices}
        )

    async def _version(self, asked: Asked) -> Reply:
        return json_reply({"version": "0.0-fake"})

    async def _health(self, asked: Asked) -> Reply:
        devices: list[dict[str, Any]] = [
            {"index": device["index"], "vram_free_mb": self.free_mb.get(device["index"])}
            for device in self.devices
        ]
        for device in devices:
            if device["index"] in self.lost:
                device |= {"ok": False, "reason": self.lost[device["index"]]}
        return json_reply(
            {
                "uptime_secs": trio.current_time() - self._started_at,
                "status": self.health_status,
                "devices": devices,
                "activation": self.activation,
                "models": self.model_loads,
            }
        )

    async def _models(self, asked: Asked) -> Reply:
        return json_reply(list(self.models.values()))

    async def _restart(self, asked: Asked) -> Reply:
        self.restarted()
        return json_reply({"status": "restarting"}, 202)

    async def _load(self, asked: Asked) -> Reply:
        model_id = asked.json["model_id"]
        if self.load_gate is not None:
            self.hold(model_id, "loading", progress={"stage": "weights", "bytes_done": 1})
            await self.load_gate.wait()
        if self.load_reply is not None:
            self.models.pop(model_id, None)
            return self.load_reply
        taken = {"vram_used_mb": self.sizes[model_id]} if model_id in self.sizes else {}
        model = self.hold(model_id, source=asked.json.get("source"), **taken)
        return json_reply({"status": "loaded", "model": model})

    async def _unload(self, asked: Asked) -> Reply:
        if self.models.pop(asked.json["model_id"], None) is None:
            return error_reply(404, "model_not_found", "not loaded")
        self._take(-self.sizes.get(asked.json["model_id"], 0))
        return json_reply({"status": "unloaded"})

    def _take(self, mb: int) -> None:
        free = self.free_mb.get(0)
        self.free_mb[0] = free if free is None else free - mb

    async def _tokenize(self, asked: Asked) -> Reply:
        return json_reply({"count": len(str(asked.json).split())})

    def _endpoint(self, model_id: str) -> Reply:
        if self._status(model_id) != "loaded":
            return error_reply(404, "model_not_found", f"{model_id} is not loaded")
        return json_reply({"url": self.advertised or self.url})

    def _status(self, model_id: str) -> str | None:
        model = self.models.get(model_id)
        return None if model is None else model["status"]

    # Inference

    async def _chat(self, asked: Asked) -> Reply:
        model = asked.json["model"]
        if self._status(model) != "loaded":
            return error_reply(404, "model_not_found", f"{model} is not loaded")
        usage = {
            "prompt_tokens": 7,
            "completion_tokens": len(self.words),
            "total_tokens": 7 + len(self.words),
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        timings = {"queue_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0}
        if asked.json.get("stream"):
            return Reply(
                frames=self._stream(model, usage, timings), content_type="text/event-stream"
            )
        text = "".join(self.words)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "text": text}
        return json_reply(
            {
                "id": "chatcmpl-fake",
                "object": "chat.completion",
                "created": 1,
                "model": model,
                "choices": [choice],
                "usage": usage,
                "timings": timings,
            }
        )

    def _stream(self, model: str, usage: dict[str, Any], timings: dict[str, Any]) -> list[bytes]:
        frames = [chunk(model, {"role": "assistant", "content": ""}, usage={"prompt_tokens": 7})]
        frames += [chunk(model, {"content": word}) for word in self.words]
        frames.append(chunk(model, {}, finish_reason="stop"))
        frames.append(chunk(model, None, usage=usage, timings=timings))
        frames.append(b"data: [DONE]\n\n")
        return frames


async def _receive(http: h11.Connection, stream: trio.SocketStream) -> Asked | None:
    """The next request with its body, None when the client has closed."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(MAX_RECEIVE))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = {key.decode().lower(): value.decode() for key, value in head.headers}
            path = head.target.decode().partition("?")[0]
            return Asked(head.method.decode(), path, headers, bytes(body))
        else:
            return None


async def _send(http: h11.Connection, stream: trio.SocketStream, event: Any) -> None:
    data = http.send(event)
    if data:
        await stream.send_all(data)
