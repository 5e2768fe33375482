"""Why a server gave no answer: of each error a word of a closed list, and nothing that the server said."""

import errno
import socket
import ssl

import aiohttp
import httpx2
import pytest

from genqueue_worker.upstream.errors.unreachable import words_of


def behind(error):
    """The error as the transport's errors have it, two causes deep."""
    inner, outer = OSError("SECRET"), httpx2.ConnectError("SECRET")
    inner.__cause__, outer.__cause__ = error, inner
    return outer


def tls(kind=ssl.SSLError, **said):
    error = kind(1, "SECRET")
    for name, value in said.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(socket.gaierror(socket.EAI_NONAME, "SECRET"), "name or service not known", id="name"),
        pytest.param(OSError(errno.ECONNREFUSED, "SECRET"), "connection refused", id="refused"),
        pytest.param(OSError(errno.ECONNRESET, "SECRET"), "connection reset", id="reset"),
        pytest.param(OSError(errno.EHOSTUNREACH, "SECRET"), "no route to the host", id="route"),
        pytest.param(OSError(errno.ENETUNREACH, "SECRET"), "network is unreachable", id="network"),
        pytest.param(OSError(errno.EPERM, "SECRET"), "not permitted by this host", id="firewall"),
        pytest.param(OSError(errno.ETIMEDOUT, "SECRET"), "timed out", id="kernel-time"),
        pytest.param(TimeoutError(), "timed out", id="time"),
        pytest.param(httpx2.ReadTimeout("SECRET"), "timed out", id="read-time"),
        pytest.param(tls(), "TLS handshake failed", id="tls"),
        pytest.param(tls(reason="TLSV13_ALERT_CERTIFICATE_REQUIRED"), "TLS handshake failed", id="tls-alert"),
        pytest.param(
            tls(reason="WRONG_VERSION_NUMBER"), "wrong version number: no TLS is spoken there", id="tls-to-plain"
        ),
        pytest.param(
            tls(ssl.SSLCertVerificationError, verify_code=10),
            "certificate verify failed: it has expired",
            id="certificate-expired",
        ),
        pytest.param(
            tls(ssl.SSLCertVerificationError, verify_code=62),
            "certificate verify failed: it is for another name",
            id="certificate-of-another",
        ),
        pytest.param(
            tls(ssl.SSLCertVerificationError, verify_code=99), "certificate verify failed", id="certificate-else"
        ),
        pytest.param(aiohttp.ServerDisconnectedError("SECRET"), "closed before it answered", id="closed"),
        pytest.param(
            aiohttp.ClientHttpProxyError(None, (), message="SECRET"), "the proxy does not let us through", id="proxy"
        ),
        pytest.param(aiohttp.ClientResponseError(None, (), message="SECRET"), "its answer is no HTTP", id="no-http"),
        pytest.param(UnicodeError("SECRET"), "its address cannot be asked", id="address"),
    ],
)
def test_an_error_is_one_of_few_words(error, words):
    assert words_of(error) == words_of(behind(error)) == words


class OfAiohttp(ssl.SSLError):
    """An error that is one of TLS by its class alone."""


def test_the_reason_is_that_of_the_innermost_error():
    error = OfAiohttp(1, "SECRET")
    error.__cause__ = tls(reason="WRONG_VERSION_NUMBER")
    assert words_of(error) == "wrong version number: no TLS is spoken there"


def test_another_is_the_name_of_its_class():
    assert words_of(behind(KeyError("SECRET"))) == "ConnectError"
