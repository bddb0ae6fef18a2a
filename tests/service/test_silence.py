"""Peers whose machine or network has gone are found out by the kernel, without our sending."""

from __future__ import annotations

import socket
import sys

import pytest

from cortex.service.serve import STALLED_CLIENT_MS, listen
from cortex.service.silence import BREAKS_IN_SILENCE


@pytest.mark.skipif(sys.platform != "linux", reason="the options of Linux")
def test_what_is_accepted_breaks_in_silence():
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            expected = {option[:2]: option[2] for option in BREAKS_IN_SILENCE}
            assert len(expected) == 5
            expected[socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT] = STALLED_CLIENT_MS
            assert {name: accepted.getsockopt(*name) for name in expected} == expected
