"""Why a server gave no answer, in few words of ours: fit for logs, status and metrics, whatever the server said.

Pure.  The words are a closed list; of an error that is not on it, the name of its class stands in.
"""

import errno
import socket
import ssl
from collections.abc import Iterable

import aiohttp
import httpx2

_BY_ERRNO = {
    getattr(errno, name): words
    for name, words in {
        "ECONNREFUSED": "connection refused",
        "ECONNRESET": "connection reset",
        "ECONNABORTED": "connection reset",
        "EPIPE": "connection reset",
        "EHOSTUNREACH": "no route to the host",
        "EHOSTDOWN": "no route to the host",
        "ENETUNREACH": "network is unreachable",
        "ENETDOWN": "network is unreachable",
        "EADDRNOTAVAIL": "address is not available",
        "EACCES": "not permitted by this host",
        "EPERM": "not permitted by this host",
        "ETIMEDOUT": "timed out",
    }.items()
    if hasattr(errno, name)  # not every system has all
}
_BY_CERTIFICATE = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is signed by itself",
    19: "its issuer is not trusted here",
    20: "its issuer is not trusted here",
    21: "its issuer is not trusted here",
    62: "it is for another name",
    64: "it is for another address",
}
"""By OpenSSL's X509_V_ERR codes."""
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


def words_of(error: BaseException) -> str:
    """Why a question has no answer, by the error that it, or what led to it, is."""
    errors = _chain(error)
    for known in reversed(errors):  # aiohttp's own are ssl.SSLErrors too, and lack its reason
        match known:
            case ssl.SSLCertVerificationError():
                why = _BY_CERTIFICATE.get(getattr(known, "verify_code", 0))
                return f"certificate verify failed: {why}" if why else "certificate verify failed"
            case ssl.SSLError() if getattr(known, "reason", None) in _NO_TLS:
                return "wrong version number: no TLS is spoken there"
            case ssl.SSLError():
                return "TLS handshake failed"
            case socket.gaierror():
                return "name or service not known"
    for known in errors:
        match known:
            case aiohttp.ClientHttpProxyError():
                return "the proxy does not let us through"
            case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
                return "closed before it answered"
            case aiohttp.ClientResponseError():
                return "its answer is no HTTP"
            case OSError() if known.errno in _BY_ERRNO:
                return _BY_ERRNO[known.errno]
            case TimeoutError() | httpx2.TimeoutException():
                return "timed out"
            case httpx2.InvalidURL() | ValueError():
                return "its address cannot be asked"
    return type(error).__name__


def no_server(generator: str, troubles: Iterable[tuple[str, str]]) -> str:
    """Why no server of a generator can be asked; ``troubles`` are their addresses, and what is wrong with each."""
    each = "; ".join(f"{address}: {trouble}" for address, trouble in dict(troubles).items())
    return f"no server of {generator!r} can be reached: {each}"


def _chain(error: BaseException) -> list[BaseException]:
    errors: list[BaseException] = []
    known: BaseException | None = error
    while known is not None and known not in errors:
        errors.append(known)
        known = known.__cause__ or known.__context__
    return errors
