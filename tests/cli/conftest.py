"""A gateway that answers what a test tells it to, over real HTTP on a free port."""

import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from cortex.cli.main import cli

JSON = "application/json"


class ScriptedServer:
    """Answers ``(method, path)`` with the next of its scripted answers; the last one repeats.

    An answer is ``(status, body)``; a body of bytes is sent as it is, as an event stream, and the
    connection is cut after it. What was asked is kept in ``asked``, bodies as objects.
    """

    def __init__(self):
        self.answers = defaultdict(list)
        self.asked = []
        self.headers = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"script": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def on(self, method, path, *answers):
        self.answers[method, path] = [a if isinstance(a, tuple) else (200, a) for a in answers]

    def bodies(self, path):
        return [body for _, where, body in self.asked if where == path]

    def next_answer(self, method, path, body, headers):
        with self._lock:
            self.asked.append((method, path, body))
            self.headers.append(headers)
            queue = self.answers[method, path]
            if not queue:
                return 404, {"error": {"message": f"no route {path}"}}
            return queue.pop(0) if len(queue) > 1 else queue[0]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    script = None
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        status, answer = self.script.next_answer(
            self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()}
        )
        if callable(answer):
            answer = answer()
        streamed = isinstance(answer, bytes)
        payload = answer if streamed else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "text/event-stream" if streamed else JSON)
        if not streamed:
            self.send_header("content-length", str(len(payload)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(payload)
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def servers():
    """Makes as many as a test wants."""
    made = []

    def make():
        made.append(ScriptedServer())
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def invoke(monkeypatch):
    for name in ("CORTEX_ENDPOINT", "CORTEX_CONFIG", "NEURON_CONFIG", "CORTEX_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*words, **options):
        return CliRunner().invoke(cli, [str(word) for word in words], **options)

    return invoke


@pytest.fixture
def nobody():
    """The URL of a port at which nobody listens."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}"
