"""How long a certificate is valid, read off its DER: the standard library tells of no file's."""

from __future__ import annotations

import datetime
import re
import ssl
import time
from pathlib import Path

from cortex.cli.doctor.report import Finding, Judge
from cortex.config.errors import ConfigError
from cortex.config.gateway import GatewayConfig
from cortex.gateway.certificate import context_of

DAY = 86400.0
SOON_DAYS = 14
UTC_TIME, VERSION = 0x17, 0xA0  # tags

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def validity(judge: Judge, config: GatewayConfig, now: float | None = None) -> Finding | None:
    """Whether the API's certificate fits its key and is valid; None where it is not https."""
    path = config.gateway.tls_certificate
    if path is None:
        return None
    now = time.time() if now is None else now
    try:
        context_of(config)
        begins, ends = span(path)
    except ConfigError as error:
        return judge.failed(
            "certificate", str(error), "put both files in order, then cortex reload"
        )
    except (OSError, ValueError) as error:
        return judge.failed("certificate", f"{path}: {error}", "renew it")
    until = datetime.datetime.fromtimestamp(ends, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if now < begins:
        return judge.failed("certificate", f"{path} is not valid yet", "look at this host's clock")
    if now > ends:
        return judge.failed(
            "certificate", f"{path} ended at {until}", "renew it, then cortex reload"
        )
    if ends - now < SOON_DAYS * DAY:
        return judge.warning(
            "certificate", f"{path} ends at {until}", "renew it, then cortex reload"
        )
    return judge.ok("certificate", f"{path} is valid until {until}")


def span(path: Path) -> tuple[float, float]:
    """From when until when the first certificate of a PEM file is valid, in Unix seconds."""
    found = _PEM.search(path.read_text(encoding="ascii", errors="replace"))
    if found is None:
        raise ValueError("holds no certificate")
    try:
        outer = _value(ssl.PEM_cert_to_DER_cert(found[0]))[1]
        fields = _children(_value(outer)[1])
        at = 1 if fields[0][0] == VERSION else 0
        begins, ends = _children(fields[at + 3][1])  # serial, algorithm, issuer, validity
        return _moment(*begins), _moment(*ends)
    except (IndexError, ValueError) as error:
        raise ValueError("its certificate cannot be read") from error


def _value(der: bytes) -> tuple[int, bytes, bytes]:
    """The first value of *der*: its tag, its content, and what follows it."""
    tag, length, at = der[0], der[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(der[2 : 2 + count]), 2 + count
    if len(der) < at + length:
        raise ValueError("cut short")
    return tag, der[at : at + length], der[at + length :]


def _children(content: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while content:
        tag, inner, content = _value(content)
        found.append((tag, inner))
    return found


def _moment(tag: int, text: bytes) -> float:
    digits = text.decode("ascii")
    if tag == UTC_TIME:
        digits = ("19" if int(digits[:2]) >= 50 else "20") + digits
    when = datetime.datetime.strptime(digits, "%Y%m%d%H%M%SZ")
    return when.replace(tzinfo=datetime.UTC).timestamp()
