from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.address_policy import NotAllowed, Target, is_public, target_of

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "2001:4860:4860::8888"]
PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "2002:7f00:1::", "2002:808:808::", "2001:0:1::1"),
    *("", "x", "8.8.8.8.", "1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_open_internet(address):
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_everything_else(address):
    assert not is_public(address)


@given(st.ip_addresses())
def test_no_private_address_is_public_however_it_is_written(ip):
    assert not is_public(str(ip)) or ip.is_global
    if isinstance(ip, ipaddress.IPv4Address):
        assert is_public(f"::ffff:{ip}") == is_public(str(ip))


def test_a_url_is_taken_apart():
    assert target_of("https://Example.com/a.png?b=1#c") == Target(
        "https", "example.com", 443, "/a.png?b=1"
    )
    assert target_of("HTTPS://example.com.:443") == Target("https", "example.com", 443, "/")
    assert target_of("https://8.8.8.8/x").host == "8.8.8.8"
    assert target_of("https://[2606:4700:4700::1111]/x").host == "2606:4700:4700::1111"
    assert target_of("http://example.com/", allow_http=True).port == 80


HOSTILE = [
    "http://example.com/",
    "http://127.0.0.1:8080/",
    "http://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://127.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://1.2.3.4.5/",
    "https://user@example.com/",
    "https://user:pw@example.com/",
    "https://@example.com/",
    "https://example.com\\@127.0.0.1/",
    "https://example.com:8443/",
    "https://example.com:22/",
    "https://example.com:0/",
    "https://example.com:99999/",
    "https://example.com:x/",
    "https:///x",
    "https://",
    "https://exa mple.com/",
    "https://example.com/\r\nhost: x",
    "https://example.com/\t",
    "https://ex\u00e4mple.com/",
    "https://\u2460.com/",
    "https://127.0.0.1\u3002/",
    "https://-x.com/",
    "https://a..b/",
    "https://[::1/",
    "https://[fe80::1%25eth0]/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "ftp://example.com/",
    "data:text/html,x",
    "javascript:alert(1)",
    "//example.com/x",
    "example.com",
    "",
    "https://example.com/" + "x" * 3000,
]


@pytest.mark.parametrize("url", HOSTILE)
def test_what_is_never_asked(url):
    with pytest.raises(NotAllowed) as caught:
        target_of(url)
    assert str(caught.value).isprintable()


@given(st.text(max_size=40))
def test_any_text_is_refused_or_a_host_of_the_internet(text):
    for url in (text, f"https://{text}", f"https://{text}/x"):
        try:
            target = target_of(url)
        except NotAllowed:
            continue
        assert target.scheme == "https"
        assert target.host.isascii()
        assert target.port == 443
