"""Until when a certificate is valid. The ssl module tells that of a peer's only, not of one's own.

A certificate is DER (X.690): values with a tag and a length. RFC 5280, 4.1 has the order in which
they come: version (optional), serial number, signature, issuer, validity.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

SEQUENCE, VERSION = 0x30, 0xA0
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def not_after(pem: str) -> datetime:
    """When the first certificate in *pem*, which is the server's own, ceases to be valid.
    ValueError where there is none."""
    begin = pem.find(_BEGIN)
    end = pem.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate in PEM")
    der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_END)] + "\n")
    certificate, _ = _value(der, SEQUENCE)
    rest, _ = _value(certificate, SEQUENCE)
    if rest[:1] == bytes([VERSION]):
        _, rest = _value(rest, VERSION)
    for _ in ("serial number", "signature", "issuer"):
        _, rest = _value(rest)
    validity, _ = _value(rest, SEQUENCE)
    _, last = _value(validity)
    return _time(last)


def _value(der: bytes, tag: int | None = None) -> tuple[bytes, bytes]:
    """The first value's content, and what comes after it."""
    if len(der) < 2 or (tag is not None and der[0] != tag):
        raise ValueError("no certificate in DER")
    length, start = der[1], 2
    if length >= 0x80:  # the long form: how many bytes have the length
        start += length & 0x7F
        length = int.from_bytes(der[2:start], "big")
    if start + length > len(der):
        raise ValueError("a certificate that is cut short")
    return der[start : start + length], der[start + length :]


def _time(der: bytes) -> datetime:
    """RFC 5280: always UTC, with seconds; two digits of a year are from 1950 on."""
    text = _value(der)[0].decode("ascii")
    if der[0] == UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    elif der[0] != GENERALIZED_TIME:
        raise ValueError("a certificate without a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
