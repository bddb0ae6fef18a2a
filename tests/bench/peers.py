"""The engine beside llama.cpp and transformers on the CPU: the same random weights, in one run.

    python tests/bench/peers.py --llama PYTHON --transformers PYTHON [--shape qwen3-0.6b] [...]

Each server is started in turn with the same number of threads, asked once to warm up, then asked by
1, 4 and 8 clients at once, each for the same number of tokens from a prompt of its own. PYTHON is
that of an environment with ``llama-cpp-python[server]``, or with ``transformers[serving]`` and
torch; a peer that is not named is left out. ``llama.cpp batched`` is llama.cpp without its Python
server, which serves one request at a time: the C API decodes all sequences in one batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import trio
from random_model import FORMATS, make

from cortex.wire.sse import FrameReader

START_SECONDS = 300
HERE = Path(__file__).resolve().parent


@attrs.define
class Stream:
    """What one client saw: seconds from its request to each piece of text."""

    times: list[float] = attrs.field(factory=list)
    tokens: int = 0


@attrs.frozen
class Row:
    engine: str
    form: str
    streams: int
    rate: float
    first: float
    gap_p50: float
    gap_p99: float

    def line(self) -> str:
        return (
            f"| {self.engine} | {self.form} | {self.streams} | {self.rate:.1f} | "
            f"{self.first * 1e3:.0f} ms | {self.gap_p50 * 1e3:.1f} ms | "
            f"{self.gap_p99 * 1e3:.1f} ms |"
        )


HEADER = (
    "| engine | weights | streams | tok/s | first token | between tokens, p50 | p99 |\n"
    "|---|---|---|---|---|---|---|"
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], url: str, log: Path) -> Iterator[None]:
    """*command* until the block ends; ready when *url* answers 200."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url, timeout=2).status_code == 200:
                        break
                time.sleep(0.3)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


async def ask(client: httpx.AsyncClient, base: str, body: dict[str, object]) -> Stream:
    seen, reader = Stream(), FrameReader()
    started = time.perf_counter()
    async with client.stream("POST", f"{base}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread())[:500]!r}")
        async for data in answer.aiter_raw():
            now = time.perf_counter() - started
            for frame in reader.feed(data):
                if not frame.data or frame.data == b"[DONE]":
                    continue
                chunk = json.loads(frame.data)
                choices = chunk.get("choices") or []
                if choices and choices[0].get("delta", {}).get("content"):
                    seen.times.append(now)
                if chunk.get("usage"):
                    seen.tokens = chunk["usage"]["completion_tokens"] or seen.tokens
    seen.tokens = seen.tokens or len(seen.times)
    return seen


async def measure(
    base: str, model: str, streams: int, prompt: int, tokens: int, extra: dict[str, object]
) -> list[Stream]:
    found: list[Stream] = []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        text = (f"{streams} {number} " + "the quick brown fox " * prompt)[:prompt]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            **extra,
        }
        found.append(await ask(client, base, body))

    async with httpx.AsyncClient(timeout=600) as client, trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(one, client, number)
    return found


def row_of(engine: str, form: str, streams: int, seconds: float, found: list[Stream]) -> Row:
    gaps = sorted(b - a for s in found for a, b in zip(s.times, s.times[1:], strict=False))
    return Row(
        engine,
        form,
        streams,
        sum(s.tokens for s in found) / seconds,
        statistics.median(s.times[0] for s in found),
        gaps[len(gaps) // 2],
        gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))],
    )


def cortex(form: str, path: Path, options: argparse.Namespace, logs: Path) -> Iterator[Row]:
    port, name = free_port(), path.stem if path.is_file() else path.name
    config = logs / "neuron.toml"
    config.write_text(f'listen = "127.0.0.1:{port}"\nthreads = {options.threads}\n')
    spec = {"model_id": name, "source": str(path), "context": 1024}
    spec |= {"dtype": "bfloat16"} if form == "bf16" else {}
    spec |= {"dtype": "float32"} if form == "f32" else {}
    command = [sys.executable, "-m", "cortex", "neuron", "--config", str(config)]
    base = f"http://127.0.0.1:{port}"
    with server(command, base + "/health", logs / "cortex.log"):
        loaded = httpx.post(f"{base}/models/load", json=spec, timeout=START_SECONDS)
        if loaded.status_code != 200:
            raise RuntimeError(loaded.text)
        yield from bench_running(
            "cortex", form, base, name, options,
            ignore_eos=True, stream_options={"include_usage": True},
        )  # fmt: skip


def bench_running(
    name: str, form: str, base: str, model: str, options: argparse.Namespace, **extra: object
) -> Iterator[Row]:
    """Rows of a server that runs; *extra* are fields that it understands."""
    trio.run(measure, base, model, 1, options.prompt, 4, extra)
    for streams in options.streams:
        rows = []
        for _ in range(options.repeats):
            started = time.perf_counter()
            found = trio.run(measure, base, model, streams, options.prompt, options.tokens, extra)
            rows.append(row_of(name, form, streams, time.perf_counter() - started, found))
        yield max(rows, key=lambda row: row.rate)


def llama(form: str, path: Path, options: argparse.Namespace, logs: Path) -> Iterator[Row]:
    port = free_port()
    command = [options.llama, "-m", "llama_cpp.server", "--model", str(path), "--port", str(port)]
    command += ["--n_ctx", "1024", "--n_threads", str(options.threads)]
    command += ["--n_threads_batch", str(options.threads), "--interrupt_requests", "False"]
    base = f"http://127.0.0.1:{port}"
    with server(command, base + "/v1/models", logs / "llama.log"):
        yield from bench_running("llama-cpp-python", form, base, "any", options)


def llama_batched(form: str, path: Path, options: argparse.Namespace, logs: Path) -> Iterator[Row]:
    command = [options.llama, str(HERE / "llama_batched.py"), str(path)]
    command += [
        str(options.threads),
        str(options.prompt),
        str(options.tokens),
        str(options.repeats),
    ]
    command += map(str, options.streams)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    for line in done.stdout.splitlines():
        streams, rate, first, p50, p99 = map(float, line.split())
        yield Row("llama.cpp batched", form, int(streams), rate, first, p50, p99)


def transformers(form: str, path: Path, options: argparse.Namespace, logs: Path) -> Iterator[Row]:
    port = free_port()
    program = str(Path(options.transformers).parent / "transformers")
    dtype = "bfloat16" if form == "bf16" else "float32"
    command = [program, "serve", str(path), "--continuous-batching", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", dtype]
    base = f"http://127.0.0.1:{port}"
    with server(command, base + "/health", logs / "transformers.log"):
        yield from bench_running("transformers", form, base, str(path), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--prompt", type=int, default=64, help="characters, which are tokens")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=2, help="of which the best counts")
    parser.add_argument("--models", type=Path, help="where to keep the models")
    parser.add_argument("--llama", help="the Python of its environment")
    parser.add_argument("--transformers", help="the Python of its environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        logs = Path(place)
        paths = make(options.models or logs, options.shape, tuple(options.formats))
        print(HEADER, flush=True)
        for form in options.formats:
            dense = form in ("f32", "bf16")
            jobs = [cortex(form, paths["folder"] if dense else paths[form], options, logs)]
            if options.llama:
                jobs += [llama(form, paths[form], options, logs)]
                jobs += [llama_batched(form, paths[form], options, logs)]
            if options.transformers and dense:
                jobs.append(transformers(form, paths["folder"], options, logs))
            for job in jobs:
                try:
                    for row in job:
                        print(row.line(), flush=True)
                except (
                    RuntimeError,
                    httpx.HTTPError,
                    ExceptionGroup,
                    subprocess.SubprocessError,
                ) as error:
                    print(f"failed: {error!r}"[:3000], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
