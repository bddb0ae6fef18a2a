"""nginx and Caddy with the shipped files, in front of a gateway: what passes, and what does not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
import trio
from fakes.demo_neuron import eventually
from fakes.gateway import CHAT, MESSAGES, chat, message
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply
from fakes.programs import program
from fakes.served_gateway import ServedGateway, served_gateway
from fakes.tls import pem, trusting

FOLDER = Path(__file__).parents[2] / "packaging" / "proxies"
NGINX, CADDY = FOLDER / "nginx.conf", FOLDER / "Caddyfile"
PROXIES = ("nginx", "caddy")
MIB = 1024 * 1024
GATEWAY = "127.0.0.1:31313"  # in both files
NAME = "cortex.example.org"
WORD = chunk("m", {"content": "Hello"})
LATER = chunk("m", {"content": "world"})
END = (chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@attrs.frozen
class Proxy:
    """A proxy that runs: ``url`` is the shipped file's, ``open`` the same without its refusals of
    the fleet's routes, ``lonely`` the same before a gateway that does not run."""

    name: str
    url: str
    open: str
    lonely: str


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, f"{old!r} has gone from the shipped file"
        text = text.replace(old, new)
    return text


def without(text: str, pattern: str, count: int) -> str:
    text, found = re.subn(pattern, "", text, flags=re.MULTILINE)
    assert found == count
    return text


def nginx_files(folder: Path, ports: list[int], gateway: str, nobody: str) -> Path:
    """nginx's configuration around three copies of ours, in *folder*."""
    ours = NGINX.read_text(encoding="utf-8")
    refusals = without(ours, r"^    location .*/fleet/? \{ return 403; \}$", 2)
    texts = ((ours, gateway), (refusals, gateway), (ours, nobody))
    for number, (text, upstream) in enumerate(texts):
        text = replaced(
            text,
            (GATEWAY, upstream),
            ("cortex_gateway", f"cortex_gateway_{number}"),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{ports[number]} ssl http2;"),
            ("listen 80;", f"listen 127.0.0.1:{ports[3]};"),
            (f"server_name {NAME};", f"server_name server-{number};"),
            (f"/etc/ssl/certs/{NAME}.pem", str(pem("one"))),
            (f"/etc/ssl/private/{NAME}.key", str(pem("one"))),
        )
        (folder / f"cortex-{number}.conf").write_text(text, encoding="utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    main = folder / "nginx.conf"
    main.write_text(
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        f"daemon off;\nworker_processes 1;\npid {folder}/pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/cortex-*.conf;\n}}\n",
        encoding="utf-8",
    )
    return main


def caddy_file(folder: Path, ports: list[int], gateway: str, nobody: str) -> Path:
    """Three copies of ours as one file, in *folder*."""
    ours = CADDY.read_text(encoding="utf-8")
    refusals = without(ours, r"^\trespond @private 403$", 1)
    texts = [
        f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system {folder}\n}}\n"
    ]
    for number, (text, upstream) in enumerate(
        ((ours, gateway), (refusals, gateway), (ours, nobody))
    ):
        texts.append(
            replaced(
                text,
                (GATEWAY, upstream),
                (f"{NAME} {{", f"https://127.0.0.1:{ports[number]} {{"),
                (
                    f"# tls /etc/ssl/certs/{NAME}.pem /etc/ssl/private/{NAME}.key",
                    f"tls {pem('one')} {pem('one')}",
                ),
            )
        )
    path = folder / "Caddyfile"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def running(command: list[str], ports: list[int], folder: Path) -> Iterator[None]:
    """*command* as a process, until it accepts on *ports*; ended with the block."""
    said = folder / "said"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder)}
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: process.poll() is not None or all(map(accepts, ports)), 20, "it accepts")
        assert process.poll() is None, said.read_text(encoding="utf-8", errors="replace")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def gateway() -> Iterator[ServedGateway]:
    neuron = FakeNeuron()
    neuron.hold("m")
    pace = {"keepalive_seconds": 0.1, "commit_after_seconds": 0.1, "queue_wait_seconds": 0.2}
    with served_gateway(neuron, **pace) as served:
        yield served


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest, gateway: ServedGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    path = program(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    *ports, nobody = free_ports(5)
    ends = (urlsplit(gateway.url).netloc, f"127.0.0.1:{nobody}")
    if request.param == "nginx":
        config = nginx_files(folder, ports, *ends)
        command = [path, "-p", str(folder), "-e", str(folder / "errors"), "-c", str(config)]
    else:
        config = caddy_file(folder, ports, *ends)
        command = [path, "run", "--adapter", "caddyfile", "--config", str(config)]
    with running(command, ports[:3], folder):
        yield Proxy(request.param, *(f"https://127.0.0.1:{port}" for port in ports[:3]))


@pytest.fixture(params=["http/1.1", "h2"])
def client(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[httpx.Client]:
    """To the shipped file's server, in either version of HTTP that it speaks."""
    with to(proxy.url, http2=request.param == "h2") as client:
        yield client


def to(url: str, *, http2: bool = False) -> httpx.Client:
    context = trusting("one")
    return httpx.Client(
        base_url=url, verify=context, http1=not http2, http2=http2, timeout=30, trust_env=False
    )


@pytest.fixture(autouse=True)
def scripts(gateway: ServedGateway) -> Iterator[None]:
    yield
    gateway.neuron.scripts.clear()


def held(gateway: ServedGateway, *frames: bytes) -> trio.Event:
    """Have the neuron write *frames*, and LATER and the end when the event that comes back is
    set."""
    go_on = trio.Event()
    stream = (chunk("m", {"role": "assistant", "content": ""}), *frames, go_on, LATER, *END)
    gateway.neuron.scripts[CHAT] = lambda asked: Reply(
        frames=stream, content_type="text/event-stream"
    )
    return go_on


def read_until(chunks: Iterator[bytes], *texts: bytes) -> bytes:
    received = b""
    while not all(text in received for text in texts):
        received += next(chunks)
    return received


def disconnects(gateway: ServedGateway) -> float:
    text = httpx.get(f"{gateway.metrics}/metrics", trust_env=False).text
    found = re.findall(r"^cortex_client_disconnects_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_nginx_finds_nothing_wrong_with_its_file(tmp_path):
    config = nginx_files(tmp_path, free_ports(4), GATEWAY, GATEWAY)
    command = [program("nginx"), "-t", "-p", str(tmp_path), "-e", "stderr", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in re.sub(r".*the \"listen \.\.\. http2\" directive.*\n", "", done.stderr)


def test_caddy_finds_nothing_wrong_with_its_file(tmp_path):
    command = [program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(CADDY)]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert done.returncode == 0, done.stderr
    assert '"level":"warn"' not in done.stderr
    assert "not formatted" not in done.stderr


def test_the_first_token_arrives_before_there_is_a_second(gateway, client):
    go_on = held(gateway, WORD)
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = response.iter_raw()
        first = read_until(chunks, b"Hello")
        assert b"world" not in first
        gateway.soon(go_on.set)
        assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


def test_keep_alives_pass_while_nothing_else_comes(gateway, client):
    go_on = held(gateway)
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        chunks = response.iter_raw()
        received = read_until(chunks, b": ")
        assert b"Hello" not in received
        assert b"world" not in received
        gateway.soon(go_on.set)
        assert b"world" in b"".join(chunks)


def test_anthropics_dialect_streams_too(gateway, client):
    go_on = held(gateway, WORD)
    with client.stream("POST", MESSAGES, json=message(stream=True)) as response:
        chunks = response.iter_raw()
        assert b"world" not in read_until(chunks, b"Hello")
        gateway.soon(go_on.set)
        assert b"message_stop" in b"".join(chunks)


def test_the_gateway_hears_that_a_client_has_left(gateway, client):
    go_on = held(gateway, WORD)
    before = disconnects(gateway)
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        read_until(response.iter_raw(), b"Hello")
    client.close()
    eventually(lambda: disconnects(gateway) == before + 1, 10, "it was cancelled")
    gateway.soon(go_on.set)


def test_the_gateway_hears_that_a_client_has_left_who_waits_for_a_whole_answer(gateway, proxy):
    go_on = trio.Event()
    gateway.neuron.scripts[CHAT] = lambda asked: Reply(frames=(go_on,))
    before, asked = disconnects(gateway), gateway.neuron.counts[CHAT]
    address = urlsplit(proxy.url)
    plain = socket.create_connection((address.hostname, address.port))
    body = json.dumps(chat()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {address.netloc}\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with trusting("one").wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        secure.sendall(head.encode() + body)
        eventually(lambda: gateway.neuron.counts[CHAT] > asked, 10, "it arrives")
    eventually(lambda: disconnects(gateway) == before + 1, 10, "it was cancelled")
    gateway.soon(go_on.set)


def test_a_large_body_passes_and_a_larger_one_is_a_413_in_json(gateway, proxy):
    gateway.neuron.scripts[CHAT] = lambda asked: error_reply(
        400, "seen", f"{len(asked.body) // MIB} MiB"
    )
    with to(proxy.url) as client:
        text = "x" * (60 * MIB)
        done = client.post(
            CHAT, json={"model": "m", "messages": [{"role": "user", "content": text}]}
        )
        assert (done.status_code, done.json()["error"]["message"]) == (400, "60 MiB")
        done = client.post(CHAT, content=b" " * (65 * MIB))
        assert done.status_code == 413
        assert done.json()["error"]["code"] == "request_too_large"
    gateway.neuron.requests.clear()  # 60 MiB that nobody needs any more


def test_an_error_is_the_gateways_with_its_status_and_retry_after(gateway, proxy):
    gateway.neuron.scripts[CHAT] = lambda asked: error_reply(503, "overloaded", retry_after=7)
    options = {"json": chat(), "headers": {"x-request-id": "one"}}
    with to(proxy.url) as client:
        through, direct = client.post(CHAT, **options), gateway.client.post(CHAT, **options)
    assert direct.status_code == 429
    assert through.status_code == direct.status_code
    assert through.json() == direct.json()
    assert "retry-after" in direct.headers
    for name in ("retry-after", "x-request-id", "content-type"):
        assert through.headers[name] == direct.headers[name]


@pytest.mark.parametrize(
    "path",
    ["/fleet", "/fleet/", "/fleet/events", "/%66leet", "//fleet", "/v1/../fleet", "/fleet?a=b"],
)
def test_the_fleets_routes_are_not_passed_on(proxy, path):
    assert raw_status(proxy.url, "GET", path) in (400, 403, 404)


def test_nor_are_orders_and_metrics(proxy):
    with to(proxy.url) as client:
        assert client.post("/fleet/reload").status_code == 403
        assert client.get("/metrics").status_code in (403, 404)
        assert client.get("/livez").status_code == 200


def test_the_gateway_refuses_by_itself_what_comes_through_a_proxy(proxy, gateway):
    assert gateway.client.get("/fleet").status_code == 200  # from this machine, without a key
    with to(proxy.open) as client:
        for claimed in ({}, {"x-forwarded-for": "127.0.0.1"}):  # under a loopback name each
            done = client.get("/fleet", headers=claimed)
            assert done.status_code == 403
            assert "this machine only" in done.json()["error"]["message"]


def test_without_a_gateway_the_error_is_json_and_says_when_to_try_again(proxy):
    with to(proxy.lonely) as client:
        done = client.post(CHAT, json=chat())
    assert done.status_code == 503
    assert done.headers["retry-after"] == "5"
    assert done.headers["content-type"] == "application/json"
    assert done.json()["error"]["code"] == "gateway_away"


def raw_status(url: str, method: str, path: str) -> int:
    """The status that *path* gets as it stands: clients resolve dots before they send."""
    address = urlsplit(url)
    plain = socket.create_connection((address.hostname, address.port))
    with trusting("one").wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        secure.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{address.port}\r\n"
            "connection: close\r\n\r\n".encode()
        )
        received = b""
        while not received.endswith(b"\r\n") and (data := secure.recv(4096)):
            received += data
    return int(received.split()[1])
