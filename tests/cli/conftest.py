"""A gateway that answers what a test tells it to, over real HTTP on a free port."""

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from cortex.cli.main import cli

JSON = "application/json"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def logs_as_before():
    """A role that a test starts sets up the logs of this process; take that back."""
    names = [
        "cortex",
        "hypercorn.error",
        *(n for n in logging.root.manager.loggerDict if n.startswith("cortex.")),
    ]
    each = [logging.getLogger(name) for name in names]
    before = [(list(log.handlers), log.propagate, log.level) for log in each]
    yield
    for log, (handlers, propagate, level) in zip(each, before, strict=True):
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


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


def _heed_signals():
    """As on a terminal: whoever runs the tests in a shell's background has them ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A command on a terminal of its own; what it writes can be waited for."""

    def __init__(self, words):
        self._end, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 160))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cortex", *map(str, words)],
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )
        os.close(theirs)
        self.written = ""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._process.kill()
        self._process.wait()
        os.close(self._end)

    def until(self, text, seconds=30):
        """Wait until *text* has been written, sequences that move the cursor left out."""
        deadline = time.monotonic() + seconds
        while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written):
            ready, _, _ = select.select([self._end], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not come: {self.written!r}"
            self.written += os.read(self._end, 65536).decode(errors="replace")

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def ended(self, seconds=30):
        return self._process.wait(seconds)


@pytest.fixture
def terminal():
    def terminal(*words):
        return Terminal(words)

    return terminal


@pytest.fixture
def nobody():
    """The URL of a port at which nobody listens."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}"
