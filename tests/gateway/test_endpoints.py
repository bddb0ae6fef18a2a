from __future__ import annotations

import pytest

from cortex.gateway.endpoints import reachable


@pytest.mark.parametrize(
    ("advertised", "configured", "expected"),
    [
        # A neuron that knows itself by loopback only is reached by the configured name.
        ("http://127.0.0.1:13131", "http://gpu1:13131", "http://gpu1:13131"),
        ("http://localhost:9000/", "http://gpu1:13131", "http://gpu1:9000"),
        ("http://[::1]:9000/x/", "http://gpu1:13131", "http://gpu1:9000/x"),
        ("http://0.0.0.0:9000", "http://gpu1:13131", "http://gpu1:9000"),
        ("http://[::]:9000", "http://[fd00::1]:13131", "http://[fd00::1]:9000"),
        ("http://127.0.0.1:9000", "https://gpu1:13131", "http://gpu1:9000"),
        # On one machine loopback is what is meant.
        ("http://127.0.0.1:9000/", "http://127.0.0.1:13131", "http://127.0.0.1:9000"),
        ("http://127.0.0.1:9000", "http://localhost:13131", "http://127.0.0.1:9000"),
        ("http://0.0.0.0:9000", "http://127.0.0.1:13131", "http://127.0.0.1:9000"),
        # A real name is believed.
        ("http://10.0.0.7:9000/", "http://gpu1:13131", "http://10.0.0.7:9000"),
        ("https://inner.example/v", "http://gpu1:13131", "https://inner.example/v"),
        # What is no address is not used.
        ("", "http://gpu1:13131/", "http://gpu1:13131"),
        ("gpu1:9000", "http://gpu1:13131", "http://gpu1:13131"),
        ("file:///etc/passwd", "http://gpu1:13131", "http://gpu1:13131"),
        ("http://user:secret@gpu2:9000", "http://gpu1:13131", "http://gpu1:13131"),
        ("http://gpu1:99999", "http://gpu1:13131", "http://gpu1:13131"),
        ("http://[::1", "http://gpu1:13131", "http://gpu1:13131"),
    ],
)
def test_an_advertised_endpoint_is_made_reachable(advertised, configured, expected):
    assert reachable(advertised, configured) == expected
