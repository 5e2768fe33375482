"""NO_PROXY as curl's manual and its tests (unit1614) have it, and the ports of Go's and Python's clients."""

import pytest

from genqueue.no_proxy import is_exempt, proxy_for


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        ("example.com", "", False),
        ("example.com", " , ,", False),
        ("example.com", "*", True),
        ("example.com", " * ", True),
        ("example.com", "other.com,*", False),  # alone only
        ("example.com", "*.com", False),
        # Names: a domain is exempt with all that is in it.
        ("local.com", "local.com", True),
        ("www.local.com", "local.com", True),
        ("www.notlocal.com", "local.com", False),
        ("notlocal.com", "local.com", False),
        ("www.example.com", "localhost,.example.com,.example.de", True),
        ("example.com", ".example.com", True),
        ("www.example.com.", ".example.com", True),
        ("www.example.com", "www.example.com.", True),
        ("EXAMPLE.com", "example.COM", True),
        ("example.com", "www.example.com", False),
        ("example.com", ".", False),
        ("example.com", "other.com example.com", True),  # blanks part too
        ("example.com", "other.com,\texample.com", True),
        ("example.com.au", "example.com", False),
        ("localhost", "localhost,127.0.0.1", True),
        ("svc", "cluster.local", False),
        # Addresses are no names.
        ("192.168.0.1", "192.168.0.1", True),
        ("192.168.0.1", "192.168.0.1, localhost", True),
        ("192.168.0.1", "168.0.1", False),
        ("192.168.0.1", "0.1", False),
        ("192.168.0.1", "192.168.0.10", False),
        ("1.192.168.0.1", "192.168.0.1", True),  # a name, if an odd one
        # Ranges.
        ("192.168.0.1", "192.168.0.0/16", True),
        ("192.168.0.1", "192.168.0.1/16", True),
        ("192.168.0.1", "192.168.0.1/24", True),
        ("192.168.0.1", "192.168.1.0/24", False),
        ("192.168.0.1", "192.168.0.1/32", True),
        ("192.168.0.1", "192.168.0.2/32", False),
        ("192.168.0.1", "192.168.0.0/33", False),
        ("192.168.0.1", "192.168.0.0/-1", False),
        ("192.168.0.1", "192.168.0.0/x", False),
        ("192.168.0.1", "192.168/16", False),
        ("192.168.0.1", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16", True),
        ("172.31.255.255", "172.16.0.0/12", True),
        ("172.32.0.0", "172.16.0.0/12", False),
        ("127.0.0.1", "127.0.0.0/8", True),
        ("host.10.0.0.0", "10.0.0.0/8", False),
        ("localhost", "127.0.0.0/8", False),  # a name is not looked up for this
        # IPv6, with its brackets or without.
        ("[::1]", "foo,bar,::1", True),
        ("[::1]", "foo, bar, [::1]", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("[::1]", "1", False),
        ("[fe80::1%25eth0]", "fe80::/64", True),
        ("[fd12::7]", "fd00::/8", True),
        ("[fd12::7]", "[fd00::]/8", True),
        ("[fc12::7]", "fd00::/8", False),
        ("[2001:db8::1]", "2001:DB8::1", True),
        ("[2001:db8::1]", "2001:db8::/32", True),
        ("[::ffff:10.0.0.1]", "10.0.0.0/8", False),
        ("10.0.0.1", "::/0", False),
        # Ports.
        ("example.com", "example.com:8080", True),
        ("example.com", "example.com:80", False),
        ("www.example.com", ".example.com:8080", True),
        ("10.0.0.1", "10.0.0.1:8080", True),
        ("10.0.0.1", "10.0.0.1:81", False),
        ("[::1]", "[::1]:8080", True),
        ("[::1]", "[::1]:80", False),
        ("example.com", "example.com:http", False),
        ("example.com", "example.com:99999999999", False),
    ],
)
def test_an_address_is_asked_without_a_proxy(host, no_proxy, expected):
    assert is_exempt(host, 8080, no_proxy) is expected


PROXIES = {"http": "http://proxy:1", "all": "http://proxy:2", "no": "10.0.0.0/8,local:8080,secret:443"}


@pytest.mark.parametrize(
    ("scheme", "host", "port", "expected"),
    [
        ("http", "10.1.2.3", None, None),
        ("http", "11.1.2.3", None, "http://proxy:1"),
        ("https", "11.1.2.3", None, "http://proxy:2"),
        ("http", "local", 8080, None),
        ("http", "local", None, "http://proxy:1"),
        ("https", "secret", None, None),  # by the scheme's own port
        ("http", "secret", None, "http://proxy:1"),
    ],
)
def test_a_server_is_asked_by_the_proxy_of_its_scheme(scheme, host, port, expected):
    assert proxy_for(scheme, host, port, PROXIES) == expected


def test_without_a_proxy_nothing_is_exempt_of_one():
    assert proxy_for("http", "10.1.2.3", None, {"no": ""}) is None
