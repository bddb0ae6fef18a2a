from __future__ import annotations

import logging

import attrs
import pytest
from fakes.accounts import add_key, revoke_key

from cortex.errors import Forbidden, Unauthorized
from cortex.gateway.auth import database
from cortex.gateway.auth.caller import ANONYMOUS
from cortex.gateway.auth.guard import Guard
from cortex.gateway.auth.keyring import KeyRing
from cortex.gateway.auth.keys import KeyStore
from cortex.gateway.auth.strangers import Strangers
from cortex.service.http import Answer, HttpRequest, Route

LOOPBACK = "127.0.0.1:31313"
OPEN = "0.0.0.0:31313"
PEER = "203.0.113.9"


async def _nothing(request: HttpRequest) -> Answer:
    return Answer(b"")


def route(scope: str, method: str = "POST") -> Route:
    return Route(method, "/x", _nothing, scope=scope)


def asked(key: str | None = None, *, peer: str | None = PEER, method="POST", **headers: str):
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return HttpRequest(method, "/x", headers, b"", {}, "req_1", peer, received_at=0.0)


@attrs.define
class Door:
    guard: Guard
    inference: str = ""
    admin: str = ""
    refusals: list[str] = attrs.field(factory=list)


@pytest.fixture
def door(tmp_path):
    """Makes guards of keys with the scopes that are named."""
    connections = []

    def make(*scopes: str, listen=LOOPBACK, anonymous: bool | None = None, revoked=False) -> Door:
        keys = {scope: add_key(tmp_path, scope, scopes=(scope,)) for scope in scopes}
        for scope in scopes if revoked else ():
            revoke_key(tmp_path, scope)
        connections.append(database.connect(tmp_path))
        ring = KeyRing(KeyStore(connections[-1]))
        refusals: list[str] = []
        guard = Guard(ring, Strangers(anonymous), listen, refusals.append)
        return Door(guard, **keys, refusals=refusals)

    yield make
    for connection in connections:
        connection.close()


def test_public_routes_ask_nobody(door):
    its = door("inference", "admin", listen=OPEN)
    for key in (None, "wrong", its.inference):
        request = asked(key)
        its.guard(request, route("public"))
        assert request.caller is ANONYMOUS


@pytest.mark.parametrize(
    ("listen", "anonymous", "keyed", "served"),
    [
        (LOOPBACK, None, False, True),
        ("[::1]:31313", None, False, True),
        ("localhost:31313", None, False, True),
        (OPEN, None, False, False),
        ("10.0.0.1:31313", None, False, False),
        (LOOPBACK, None, True, False),
        (OPEN, None, True, False),
        (OPEN, True, False, True),
        (OPEN, True, True, True),
        (LOOPBACK, False, False, False),
    ],
)
def test_who_has_no_key_is_served_only_where_that_is_meant(door, listen, anonymous, keyed, served):
    its = door(*(["inference"] if keyed else []), listen=listen, anonymous=anonymous)
    request = asked()
    if served:
        its.guard(request, route("inference"))
        assert request.caller is ANONYMOUS
    else:
        with pytest.raises(Unauthorized):
            its.guard(request, route("inference"))
        assert request.caller is None


PAGE = {"origin": "https://example.com", "content-type": "text/plain"}


@pytest.mark.parametrize("given", [None, "sk-dummy"])
def test_web_pages_from_elsewhere_are_not_served_by_default(door, given):
    its = door()
    with pytest.raises(Forbidden, match="anonymous"):
        its.guard(
            asked(given, peer="127.0.0.1", host="127.0.0.1:31313", **PAGE), route("inference")
        )
    assert its.refusals == ["permission_error"]


def test_web_pages_are_served_where_anybody_is_and_with_a_key(door):
    its = door(anonymous=True)
    its.guard(asked(**PAGE), route("inference"))
    its = door("inference")
    request = asked(its.inference, **PAGE)
    its.guard(request, route("inference"))
    assert request.caller.name == "inference"


def test_a_key_names_its_caller(door):
    its = door("inference")
    for request in (asked(its.inference), asked(**{"x-api-key": its.inference})):
        its.guard(request, route("inference"))
        assert request.caller.name == "inference"


def test_x_api_key_wins_over_a_different_bearer(door):
    its = door("inference", "admin")
    its.guard(asked("wrong", **{"x-api-key": its.inference}), route("inference"))
    with pytest.raises(Unauthorized):
        its.guard(asked(its.inference, **{"x-api-key": "wrong"}), route("inference"))


@pytest.mark.parametrize("anonymous", [None, True])
@pytest.mark.parametrize("given", ["wrong", "", "ctx-00000000-" + "A" * 32])
def test_a_wrong_key_is_refused_even_where_none_is_needed(door, anonymous, given):
    its = door("inference", anonymous=anonymous)
    with pytest.raises(Unauthorized):
        its.guard(asked(given), route("inference"))


def test_before_there_is_a_key_what_clients_send_as_one_is_not_looked_at(door):
    its = door()
    for request in (asked("sk-dummy"), asked(authorization="garbage"), asked(**{"x-api-key": "é"})):
        its.guard(request, route("inference"))
        assert request.caller is ANONYMOUS


def test_the_last_keys_end_does_not_open_the_door(door):
    its = door("inference", revoked=True)
    for key in (None, its.inference):
        with pytest.raises(Unauthorized):
            its.guard(asked(key), route("inference"))


def test_each_refusal_is_counted_and_logged(door, caplog):
    caplog.set_level(logging.INFO, logger="cortex")
    its = door("inference")
    for key, scope in ((None, "inference"), ("wrong", "inference"), (its.inference, "admin")):
        with pytest.raises((Unauthorized, Forbidden)):
            its.guard(asked(key), route(scope))
    its.guard(asked(its.inference), route("inference"))
    assert its.refusals == ["invalid_api_key", "invalid_api_key", "permission_error"]
    assert [record.message for record in caplog.records] == ["refused"] * 3


# Scopes


@pytest.mark.parametrize("scopes", [("inference",), ("inference", "admin")])
@pytest.mark.parametrize("peer", [PEER, "127.0.0.1"])
def test_an_inference_key_never_reaches_an_admin_route(door, scopes, peer):
    its = door(*scopes)
    with pytest.raises(Forbidden):
        its.guard(asked(its.inference, peer=peer, host="localhost"), route("admin"))


def test_an_admin_key_reaches_admin_routes_from_anywhere(door):
    its = door("admin")
    request = asked(its.admin, host="gateway.example")
    its.guard(request, route("admin"))
    assert request.caller.name == "admin"


def test_where_there_is_an_admin_key_nobody_passes_without(door):
    its = door("admin")
    for peer in (PEER, "127.0.0.1"):
        with pytest.raises(Unauthorized):
            its.guard(asked(peer=peer, host="localhost"), route("admin"))


def test_an_admin_key_may_list_models_and_use_none(door):
    its = door("admin")
    its.guard(asked(its.admin, method="GET"), route("inference", "GET"))
    with pytest.raises(Forbidden):
        its.guard(asked(its.admin), route("inference"))


@pytest.mark.parametrize("scopes", [(), ("inference",)])
@pytest.mark.parametrize("peer", ["127.0.0.1", "127.1.2.3", "::1"])
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:31313", "127.0.0.1:1", "[::1]:31313", "[::1]", "LocalHost:1"]
)
def test_without_an_admin_key_this_machine_may_ask(door, scopes, peer, host):
    door(*scopes).guard(asked(peer=peer, host=host), route("admin"))


@pytest.mark.parametrize("peer", ["10.0.0.5", "192.168.1.1", "::2", None, "", "localhost", "x"])
def test_no_other_machine_may(door, peer):
    with pytest.raises(Forbidden):
        door().guard(asked(peer=peer, host="localhost:31313"), route("admin"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::"])
def test_nor_a_page_that_rebinds_its_name(door, host):
    with pytest.raises(Forbidden):
        door().guard(asked(peer="127.0.0.1", host=host), route("admin"))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://localhost.evil.example", "http://[::"]
)
def test_nor_a_page_from_elsewhere_that_only_sends(door, origin):
    """A form or a fetch without CORS reaches 127.0.0.1 under that very Host."""
    with pytest.raises(Forbidden):
        door().guard(asked(peer="127.0.0.1", host="127.0.0.1", origin=origin), route("admin"))
    page_of_this_machine = asked(peer="127.0.0.1", host="127.0.0.1", origin="http://localhost:3000")
    door().guard(page_of_this_machine, route("admin"))


@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for", "x-real-ip", "via"])
def test_nor_whoever_stands_behind_a_proxy_here(door, name):
    behind = asked(peer="127.0.0.1", host="127.0.0.1:31313", **{name: "203.0.113.9"})
    with pytest.raises(Forbidden):
        door("inference").guard(behind, route("admin"))
