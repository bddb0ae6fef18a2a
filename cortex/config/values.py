"""The kinds of values a configuration holds, and their checks.

Checks are attrs validators, so that a config built in code, by a flag or from a file obeys the
same rules. They raise `Invalid` with the field's name as the path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

import attrs

from cortex.config.errors import Invalid, unknown

# A number of seconds; files may also say "90s", "30m", "2h", "1h30m", "500ms", "1d" or "-1".
Seconds = Annotated[float, "seconds"]

Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_FRAMING = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "te", "upgrade"}
    | {"accept", "accept-encoding", "expect", "trailer", "keep-alive"}
)
# Browser extensions and apps have schemes of their own; an IPv6 host stands in brackets.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_IMPLIED_PORTS = {"http": "80", "https": "443"}
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def parse_duration(text: str) -> float:
    """*text* ("30m", "1h30m", "90", "-1") in seconds; a plain number is seconds. Or `Invalid`."""
    compact = text.strip()
    if _NUMBER.fullmatch(compact):
        seconds = float(compact)
    else:
        sign = -1.0 if compact.startswith("-") else 1.0
        rest = compact.removeprefix("-")
        parts = _PART.findall(rest)
        units = [unit for _, unit in parts]
        if not parts or "".join(n + u for n, u in parts) != rest or len(set(units)) != len(units):
            raise Invalid(f'expected seconds or a duration like "30m", got {text!r}')
        seconds = sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not math.isfinite(seconds):
        raise Invalid(f"{text!r} is too long a time")
    return seconds


def split_listen(address: str) -> tuple[str, int | None]:
    """``host[:port]`` in parts, an IPv6 host without its brackets. Or `Invalid`."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, ""
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise Invalid(f'expected "host:port" (IPv6 as "[::1]:31313"), got {address!r}')
    host = host.strip("[]")
    if not host or not host.isascii() or any(c.isspace() or c == "/" for c in host):
        raise Invalid(f'expected "host:port", got {address!r}')
    if not port:
        if colon and not address.endswith("]"):
            raise Invalid(f"no port after the colon in {address!r}")
        return host, None
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise Invalid(f"{port!r} is no port (0 to 65535)")
    return host, int(port)


def join_listen(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach *listen*."""
    host, _ = split_listen(listen)
    return host in ("localhost", "::1") or host.startswith("127.")


def listen_address(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    try:
        _host, port = split_listen(value)
    except Invalid as invalid:
        raise invalid.within(field.name) from None
    if port is None:
        raise Invalid(f'expected "host:port", got {value!r}', field.name)


def http_url(_: Any, field: attrs.Attribute[Any], value: str | None) -> None:
    if value is None:
        return
    try:
        url = urlsplit(value)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port out of range, a broken IPv6 host
        sound = False
    if not sound or any(c.isspace() for c in value) or not value.isprintable():
        raise Invalid(f"expected an http or https URL, got {value!r}", field.name)
    if url.query or url.fragment or url.username is not None or url.password is not None:
        raise Invalid("a URL here has no credentials, query or fragment", field.name)


def origins(_: Any, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    """Origins of web pages exactly as browsers write them: compared as text."""
    for index, origin in enumerate(value):
        fault = _origin_fault(origin)
        if fault is not None:
            raise Invalid(fault, f"{field.name}[{index}]")


def _origin_fault(origin: str) -> str | None:
    if "*" in origin:
        return "name each origin: a pattern would let pages in that nobody here has seen"
    if not _ORIGIN.fullmatch(origin):
        form = 'expected an origin like "https://chat.example.org" or "http://localhost:3000"'
        return f"{form}, in lower case and without a path, got {origin!r}"
    scheme, _, rest = origin.partition("://")
    port = rest.rpartition(":")[2] if not rest.endswith("]") and ":" in rest else ""
    if port == _IMPLIED_PORTS.get(scheme):
        return f"browsers leave out :{port} with {scheme}, and so must this, got {origin!r}"
    return f"{port} is no port (1 to 65535)" if port and not 0 < int(port) <= 65535 else None


def is_model_id(text: str) -> bool:
    return _MODEL_ID.fullmatch(text) is not None


def model_id(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    if not _MODEL_ID.fullmatch(value):
        raise Invalid(
            f"{value!r} is no model id (letters, digits and . _ : @ / + -, at most 200)", field.name
        )


def node_name(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    if not _NODE_NAME.fullmatch(value):
        raise Invalid(f"{value!r} is no node name (letters, digits and . _ -)", field.name)


def secret(_: Any, field: attrs.Attribute[Any], value: str | None) -> None:
    """A token travels in a header: visible ASCII only. The message does not repeat it."""
    if value is not None and (not value or not all("!" <= c <= "~" for c in value)):
        raise Invalid("a token is visible ASCII characters without spaces", field.name)


def headers(_: Any, field: attrs.Attribute[Any], value: dict[str, str] | None) -> None:
    """Request headers to add; not those that frame a message. Messages do not repeat values."""
    for name, text in (value or {}).items():
        path = f'{field.name}."{name}"'
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _FRAMING:
            raise Invalid("is no header that can be set", path)
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise Invalid("a header's value is visible ASCII characters and spaces", path)


def at_least(low: float, high: float = math.inf) -> Check:
    """Numbers from *low* to *high*; None passes."""

    def check(_: Any, field: attrs.Attribute[Any], value: float | None) -> None:
        if value is not None and not low <= value <= high:
            bound = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            raise Invalid(f"must be {bound}, got {value:g}", field.name)

    return check


def more_than(low: float, high: float = math.inf) -> Check:
    """Numbers above *low*, up to *high*; None passes."""

    def check(_: Any, field: attrs.Attribute[Any], value: float | None) -> None:
        if value is not None and not low < value <= high:
            bound = "" if high == math.inf else f" and at most {high:g}"
            raise Invalid(f"must be more than {low:g}{bound}, got {value:g}", field.name)

    return check


def one_of(*known: str) -> Check:
    """One of these words; None passes."""

    def check(_: Any, field: attrs.Attribute[Any], value: str | None) -> None:
        if value is not None and value not in known:
            raise Invalid(unknown(f"value {value!r}", value, known), field.name)

    return check


def device_indices(_: Any, field: attrs.Attribute[Any], value: tuple[int, ...] | None) -> None:
    if value is None:
        return
    if not value or len(set(value)) != len(value) or any(index < 0 for index in value):
        raise Invalid("expected distinct device indices, 0 or more", field.name)
