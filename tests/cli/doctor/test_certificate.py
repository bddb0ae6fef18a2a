"""How long a certificate is valid, read without a library for it."""

from __future__ import annotations

import datetime
from pathlib import Path

import attrs
import pytest

from cortex.cli.doctor import certificate
from cortex.cli.doctor.report import FAILED, OK, WARNING, Judge
from cortex.config.gateway import GatewayConfig, GatewaySettings

JUDGE = Judge("gateway")
FILES = Path(__file__).parents[2] / "fakes" / "certificates"
ONE, TWO = FILES / "one.pem", FILES / "two.pem"


def config(path: Path, key: Path | None = None) -> GatewayConfig:
    return GatewayConfig(GatewaySettings(tls_certificate=path, tls_key=key or path))


def test_the_span_is_what_the_certificate_says():
    begins, ends = certificate.span(ONE)
    at = [datetime.datetime.fromtimestamp(each, datetime.UTC) for each in (begins, ends)]
    assert at[0] < at[1]
    assert at[0].year >= 2020


def test_it_is_judged_by_its_end():
    begins, ends = certificate.span(ONE)
    day = certificate.DAY

    def state(now: float) -> str:
        found = certificate.validity(JUDGE, config(ONE), now)
        assert found is not None
        return found.state

    assert state(begins - day) == FAILED
    assert state(begins + day) == OK
    assert state(ends - 3 * day) == WARNING
    assert state(ends + 1) == FAILED


def test_files_that_do_not_belong_together_or_are_none_are_failures(tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for found in (
        certificate.validity(JUDGE, config(ONE, TWO)),
        certificate.validity(JUDGE, config(bad)),
        certificate.validity(JUDGE, config(tmp_path / "missing")),
    ):
        assert found is not None
        assert found.state == FAILED
    for text in ("", bad.read_text(), ONE.read_text()[:400]):
        bad.write_text(text)
        with pytest.raises(ValueError, match="certificate"):
            certificate.span(bad)


def test_without_https_there_is_nothing_to_judge():
    plain = attrs.evolve(GatewayConfig())
    assert certificate.validity(JUDGE, plain) is None
