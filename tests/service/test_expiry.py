from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.tls import pem

from cortex.service.expiry import not_after
from cortex.service.tls import server_context


def theirs(path: Path) -> float:
    """When OpenSSL says that the certificate in *path*, an authority's, ceases to be valid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    (certificate,) = context.get_ca_certs()
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))


@pytest.mark.parametrize("name", ["one", "brief"])
def test_it_is_what_openssl_says(name):
    assert not_after(pem(name).read_text()).timestamp() == theirs(pem(name))
    assert server_context(pem(name), pem(name)).expires_at == theirs(pem(name))


def test_it_is_that_of_the_first_of_a_chain():
    chain = "some words\n" + pem("brief").read_text() + pem("one").read_text()
    assert not_after(chain).timestamp() == theirs(pem("brief"))


def written(validity: bytes) -> str:
    """A certificate in version 1, as far as its validity, in PEM."""

    def value(tag: int, content: bytes) -> bytes:
        return bytes([tag, len(content)]) + content

    body = value(2, b"\1") + value(0x30, b"") * 2 + value(0x30, validity)
    return ssl.DER_cert_to_PEM_cert(value(0x30, value(0x30, body)))


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (b"\x17\x0d491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (b"\x17\x0d500101000000Z", datetime(1950, 1, 1, tzinfo=UTC)),
        (b"\x18\x0f20500101000000Z", datetime(2050, 1, 1, tzinfo=UTC)),
        (b"\x18\x0f99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_both_kinds_of_times_are_read(time, expected):
    assert not_after(written(b"\x17\x0d200101000000Z" + time)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN CERTIFICATE-----",
        ssl.DER_cert_to_PEM_cert(b"\x30\x03\x30\x05\x02"),
        ssl.DER_cert_to_PEM_cert(b"\x02\x01\x01"),
        written(b"\x17\x0d200101000000Z"),
        written(b"\x17\x0d200101000000Z\x04\x0d200101000000Z"),
        written(b"\x17\x0d200101000000Z\x17\x0d209901000000Z"),
    ],
    ids=["empty", "cut", "short", "other", "half", "no time", "no month"],
)
def test_what_is_no_certificate_is_told(text):
    with pytest.raises(ValueError):
        not_after(text)
