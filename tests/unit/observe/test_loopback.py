"""Which ``Host`` means this host alone."""

import pytest

from genqueue_worker.observe.loopback import host_named, is_loopback, is_own_name


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.255.0.3", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "LocalHost"]
)
def test_a_loopback_address_is_this_hosts_alone(address):
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["", "0.0.0.0", "::", "10.0.0.5", "fe80::1", "::ffff:10.0.0.5", "127.1", "2130706433", "localhost.evil"]
)
def test_any_other_is_not(address):
    assert not is_loopback(address)


@pytest.mark.parametrize(
    "header",
    ["localhost", "LOCALHOST:9100", "127.0.0.1", "127.0.0.1:9100", "127.9.9.9:1", "[::1]", "[::1]:65535"],
)
def test_a_header_that_names_it_whatever_the_port(header):
    assert is_own_name(header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ":9100",
        "evil.example",
        "evil.example:9100",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example/localhost",
        "localhost@evil.example",
        "localhost,evil.example",
        "localhost:port",
        "localhost:9100:9100",
        "localhost ",
        "127.0.0.1\x00",
        "::1",
        "[localhost]",
        "[::]:9100",
        "0.0.0.0:9100",
        "10.0.0.5",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
    ],
)
def test_and_one_that_does_not(header):
    assert not is_own_name(header)


def test_a_name_that_is_allowed_beside_is_compared_whole_and_without_case():
    assert is_own_name("Worker-7:9100", "worker-7")
    assert not is_own_name("worker-7.evil.example:9100", "worker-7")


@pytest.mark.parametrize(
    ("header", "name"), [("A.example:80", "a.example"), ("[FE80::1]:80", "fe80::1"), ("a b", None), ("a:b", None)]
)
def test_the_name_is_without_port_and_brackets(header, name):
    assert host_named(header) == name
