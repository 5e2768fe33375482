"""The HTTP server alone: where it listens, and what it answers to whoever asks oddly."""

import json
import socket
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter

from genqueue.errors import ConfigError
from genqueue_worker.observe.health import Verdict
from genqueue_worker.observe.monitor import Monitor, _Handler


@contextmanager
def monitor(host="127.0.0.1", port=0, **probes):
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    made = Monitor(host, port, registry, {f"/{name}": lambda found=found: found for name, found in probes.items()})
    made.start()
    try:
        yield made
    finally:
        made.stop()


def ask(url, method="GET"):
    """(status, type, body)"""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def test_a_probe_answers_what_was_decided():
    with monitor(good=Verdict({"redis": ""}), bad=Verdict({"redis": "no answer", "engine": ""})) as served:
        assert ask(f"{served.address}/good") == (200, "application/json", '{"ok": true, "checks": {"redis": "ok"}}\n')
        status, _, body = ask(f"{served.address}/bad")
        assert (status, json.loads(body)) == (503, {"ok": False, "checks": {"redis": "no answer", "engine": "ok"}})
        assert ask(f"{served.address}/bad", "HEAD") == (503, "application/json", "")


def test_metrics_are_text_that_prometheus_reads():
    with monitor() as served:
        status, kind, body = ask(f"{served.address}/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert "things_total 3.0" in body.splitlines()
        assert ask(f"{served.address}/metrics", "POST")[0] == 405


def test_another_path_is_not_found_and_says_which_there_are():
    with monitor(livez=Verdict({})) as served:
        status, _, body = ask(f"{served.address}/")
        assert (status, json.loads(body)) == (404, {"error": "no such path; known: /metrics, /livez"})


def status_by(served, path, *headers, version="1.1", method="GET"):
    """The status of a request with these lines of header and no other, Host neither."""
    host, _, port = served.address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
        lines = [f"{method} {path} HTTP/{version}", *headers, "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/no-such-path"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "headers",
    [
        ["Host: evil.example"],
        ["Host: evil.example:{port}"],
        ["Host: 127.0.0.1.evil.example:{port}"],
        ["Host: 10.0.0.5:{port}"],
        ["Host: localhost@evil.example"],
        ["Host:"],
        ["Host: localhost", "Host: evil.example"],
        ["Host: evil.example", "Host: localhost"],
    ],
)
def test_on_loopback_no_page_reads_it_by_a_name_of_its_own(path, method, headers):
    with monitor(livez=Verdict({})) as served:
        port = served.address.rpartition(":")[2]
        assert status_by(served, path, *(line.format(port=port) for line in headers), method=method) == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:{port}", "[::1]:{port}", "LOCALHOST:1", "127.0.0.2"])
def test_on_loopback_it_answers_by_this_hosts_own_names(host):
    with monitor(livez=Verdict({})) as served:
        host = host.format(port=served.address.rpartition(":")[2])
        assert [status_by(served, path, f"Host: {host}") for path in ("/metrics", "/livez", "/x")] == [200, 200, 404]


def test_a_probe_of_an_old_kind_sends_no_host_and_is_answered():
    with monitor(livez=Verdict({})) as served:
        assert status_by(served, "/livez", version="1.0") == 200


def test_the_configured_name_of_a_loopback_address_is_its_own_too():
    with monitor("localhost", livez=Verdict({})) as served:
        assert status_by(served, "/livez", "Host: localhost:80") == 200
        assert status_by(served, "/livez", "Host: evil.example") == 403


@pytest.mark.parametrize("host", ["10.244.1.7:9100", "genqueue-worker.default.svc:9100", "worker-7", "localhost"])
def test_where_others_reach_it_a_scraper_comes_by_any_name(host):
    with monitor("0.0.0.0", livez=Verdict({})) as served:
        assert [status_by(served, path, f"Host: {host}") for path in ("/metrics", "/livez")] == [200, 200]


def test_who_says_nothing_keeps_nobody_else_waiting_and_is_no_trouble(capfd, monkeypatch):
    monkeypatch.setattr(_Handler, "timeout", 0.1)
    with monitor(livez=Verdict({})) as served:
        host, port = served.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))):
            assert ask(f"{served.address}/livez")[0] == 200
            silent.settimeout(10)
            assert silent.recv(1) == b""  # given up
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_an_error_and_not_shared():
    with monitor() as first:
        port = int(first.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            Monitor("127.0.0.1", port, CollectorRegistry(), {})


def test_an_address_that_is_none_of_ours_is_an_error():
    with pytest.raises(ConfigError, match=r"^monitor_host, monitor_port: cannot listen on 192\.0\.2\.1:0: "):
        Monitor("192.0.2.1", 0, CollectorRegistry(), {})


def test_it_listens_on_ipv6_too():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with monitor("::1", livez=Verdict({})) as served:
        assert served.address.startswith("http://[::1]:")
        assert ask(f"{served.address}/livez")[0] == 200


def test_after_stop_nobody_listens():
    with monitor() as served:
        pass
    with pytest.raises(OSError):
        ask(f"{served.address}/metrics")
