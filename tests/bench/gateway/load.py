"""A load generator of our own: keep-alive connections, each with one request at a time.

    python tests/bench/gateway/load.py '{"url": ..., "path": ..., "body": ..., ...}'

Prints one line of JSON: answers, failures, answers per second, and latencies in milliseconds. An
answer counts only when it is a 200 with ``needs`` in it: a gateway that is quick to fail is not
quick. With ``stamps`` every text of digits in the answer is taken as the time at which it was
written, and how long it took to arrive is told too.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import httptools

STAMP = re.compile(rb'" (\d{9,})"')


def percentile(values: list[float], share: float) -> float:
    """Nearest rank; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Results:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.delays: list[float] = []
        self.failures = 0

    def told(self, seconds: float) -> dict[str, Any]:
        told: dict[str, Any] = {
            "done": len(self.latencies),
            "failures": self.failures,
            "rate": len(self.latencies) / seconds,
        }
        for name in ("latencies", "firsts", "delays"):
            values = getattr(self, name)
            told[name] = [1e3 * percentile(values, share) for share in (0.5, 0.99)]
        return told


class Connection(asyncio.Protocol):
    def __init__(self, asked: dict[str, Any], results: Results, until: float) -> None:
        self.results, self.until = results, until
        self.needs, self.stamps = asked["needs"].encode(), asked.get("stamps", False)
        self.message = request(asked)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.ask()

    def ask(self) -> None:
        self.body, self.first = b"", 0.0
        self.parser = httptools.HttpResponseParser(self)
        self.started = time.monotonic()
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        now = time.monotonic()
        self.first = self.first or now
        if self.stamps:
            for found in STAMP.finditer(data):
                self.results.delays.append(now - int(found[1]) / 1e9)
        self.body += data

    def on_message_complete(self) -> None:
        now, results = time.monotonic(), self.results
        if self.parser.get_status_code() == 200 and self.needs in self.body:
            results.latencies.append(now - self.started)
            results.firsts.append(self.first - self.started)
        else:
            results.failures += 1
        if now < self.until:
            asyncio.get_running_loop().call_soon(self.ask)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.results.failures += time.monotonic() < self.until
        if not self.over.done():
            self.over.set_result(None)


def request(asked: dict[str, Any]) -> bytes:
    body = json.dumps(asked["body"], separators=(",", ":")).encode()
    headers = {
        "host": urlsplit(asked["url"]).netloc,
        "content-type": "application/json",
        "content-length": str(len(body)),
        **asked.get("headers", {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {asked['path']} HTTP/1.1\r\n{head}\r\n".encode() + body


async def main(asked: dict[str, Any]) -> dict[str, Any]:
    where, results = urlsplit(asked["url"]), Results()
    loop, started = asyncio.get_running_loop(), time.monotonic()
    until = started + asked["seconds"]
    pairs = [
        await loop.create_connection(
            lambda: Connection(asked, results, until), where.hostname, where.port
        )
        for _ in range(asked["connections"])
    ]
    await asyncio.wait([pair[1].over for pair in pairs], timeout=asked["seconds"] + 30)
    return results.told(time.monotonic() - started)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
