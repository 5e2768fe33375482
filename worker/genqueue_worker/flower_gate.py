"""Who may start Flower how, and whose request it answers.

Pure but for :func:`keep_private`.  Flower asks for a password, or a login elsewhere, where it has one; without it
everybody who can connect is in.  That is everybody on this host, and every web page that a browser on it shows:
a page may send to ``127.0.0.1`` what it likes, and by a name of its own that leads there (DNS rebinding) read the
answer too.  So what comes without a password is held to this host's own names, and to no page but Flower's.
"""

import base64
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from flower.utils.authentication import validate_auth_option

from genqueue.errors import ConfigError
from genqueue_worker.observe.loopback import is_loopback, is_own_name

PREFIX = "FLOWER_"
GATED = frozenset(
    [
        "basic_auth",
        "auth",
        "auth_provider",
        "oauth2_key",
        "oauth2_secret",
        "unix_socket",
        "debug",
        "logging",
        "cookie_secret",
    ]
)
"""Flower's options on which it depends whether it may start."""
LEAST_COOKIE_SECRET = 32
_LOGIN_ELSEWHERE = ("FLOWER_AUTH", "FLOWER_AUTH_PROVIDER", "FLOWER_OAUTH2_KEY", "FLOWER_OAUTH2_SECRET")
_STRANGER = "nobody@invalid.example"
_NO = {"", "0", "f", "false", "n", "no", "off"}
_DB_FILES = tuple(map("".join, product(("", ".tmp"), ("", ".db", ".dat", ".dir", ".bak"), ("", ".corrupt"))))
"""What Flower puts behind the name of its database."""


def refusal(environ: Mapping[str, str], address: str) -> str | None:
    """Why Flower must not start so; None if it may.

    Args:
        environ: Flower's settings, as its variables are called.
        address: where it is to listen; "" is every interface.
    """
    for name in environ:
        usual = name.upper().replace("-", "_")
        if usual.startswith(PREFIX) and name != usual and name.startswith(PREFIX):
            return f"{name}: Flower reads it as {usual}; call it so"
    passwords = environ.get("FLOWER_BASIC_AUTH", "")
    if passwords and not all(map(_is_password, passwords.split(","))):
        return (
            "FLOWER_BASIC_AUTH: must be user:password, or several of them with commas between, in ASCII, and "
            "neither of spaces alone"
        )
    pattern = environ.get("FLOWER_AUTH", "")
    missing = [name for name in _LOGIN_ELSEWHERE if not environ.get(name, "").strip()]
    if missing and any(environ.get(name) for name in _LOGIN_ELSEWHERE):
        return f"{', '.join(missing)}: needed too, for a login with {', '.join(_LOGIN_ELSEWHERE)}"
    if pattern and _is_too_wide(pattern):
        return (
            "FLOWER_AUTH: must be the addresses of those who may log in, with | between, or .*@ and a domain: "
            f"this would fit {_STRANGER}, or nobody"
        )
    return _careless(environ) or _open_to_others(environ, address)


def _careless(environ: Mapping[str, str]) -> str | None:
    """What would hand out the login beside it."""
    if environ.get("FLOWER_DEBUG", "").lower() not in _NO:
        return "FLOWER_DEBUG: shows tracebacks to everybody, and writes the login's secrets into the log"
    if environ.get("FLOWER_LOGGING", "").lower() == "debug":
        return "FLOWER_LOGGING: at debug the log holds the login's secrets; info has what is needed"
    if 0 < len(environ.get("FLOWER_COOKIE_SECRET", "")) < LEAST_COOKIE_SECRET:
        return (
            f"FLOWER_COOKIE_SECRET: must have {LEAST_COOKIE_SECRET} characters or more, or be left away: "
            "whoever guesses it is logged in"
        )
    return None


def _open_to_others(environ: Mapping[str, str], address: str) -> str | None:
    if environ.get("FLOWER_BASIC_AUTH") or environ.get("FLOWER_AUTH"):
        return None
    needed = (
        "FLOWER_BASIC_AUTH=user:password is needed, or FLOWER_AUTH and FLOWER_AUTH_PROVIDER with the FLOWER_OAUTH2_ "
        "variables; or --address 127.0.0.1"
    )
    if environ.get("FLOWER_UNIX_SOCKET"):
        return f"FLOWER_UNIX_SOCKET: whoever is behind it cannot be seen, so {needed} without a socket"
    if not is_loopback(address):
        return f"address {address or 'of every interface'}: others can reach it, so {needed}"
    return None


def _is_password(pair: str) -> bool:
    user, _, password = pair.partition(":")
    return pair.isascii() and pair.isprintable() and bool(user.strip()) and bool(password.strip())


def _is_too_wide(pattern: str) -> bool:
    """Read as the regular expression that Flower's help calls it, too: its versions differ in how they match."""
    try:
        return not validate_auth_option(pattern) or re.search(pattern, _STRANGER) is not None
    except re.error:
        return True


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says of where it comes from; "" for each header that it lacks."""

    method: str
    host: str
    origin: str = ""
    site: str = ""
    mode: str = ""
    dest: str = ""
    authorization: str = ""


def shut(caller: Caller, *, has_login: bool) -> tuple[int, str] | None:
    """(status, words) for a request that gets nothing else; None for one that Flower may judge.

    A browser says in ``Sec-Fetch-Site`` and ``Origin`` whose page sends; a program says neither.  Another site
    may lead here (a link in Grafana), and nothing more: no frame of its own, no form, no script.
    """
    if has_login:
        is_readable = _is_readable(caller.authorization)
        return None if is_readable else (401, "Access denied")
    if not is_own_name(caller.host):
        return 403, "Without a password this answers to localhost and 127.0.0.1 only: set FLOWER_BASIC_AUTH"
    is_link = caller.method == "GET" and (caller.mode, caller.dest) == ("navigate", "document") and not caller.origin
    if caller.origin and urlsplit(caller.origin).netloc.lower() != caller.host.lower():
        return 403, "Without a password this answers to no page but its own: set FLOWER_BASIC_AUTH"
    if caller.site not in {"", "same-origin", "none"} and not is_link:
        return 403, "Without a password this answers to no page but its own: set FLOWER_BASIC_AUTH"
    return None


def _is_readable(authorization: str) -> bool:
    """Whether Flower can compare it: it answers 500 for a user or password that is not ASCII."""
    kind, _, credentials = authorization.partition(" ")
    if kind != "Basic":
        return True
    try:
        return base64.b64decode(credentials).isascii()
    except ValueError:
        return True  # Flower refuses it


def keep_private(db: Path, *, is_own_folder: bool) -> None:
    """Have this process's files be its user's alone, and its database and their folder too if they are there already.

    Args:
        db: Flower's database, whose files have endings behind that name.
        is_own_folder: whether nothing but the database is in its folder.

    Raises:
        ConfigError: the folder cannot be made, or somebody else could have written the database: Flower unpickles
            it, so it may be a program.
    """
    os.umask(0o077)
    try:
        db.parent.mkdir(parents=True, exist_ok=True)
        if is_own_folder:
            db.parent.chmod(0o700)
        for path in (db.with_name(db.name + ending) for ending in _DB_FILES):
            _make_private(path)
    except OSError as error:
        raise ConfigError(f"--db {db}: {error.strerror}") from None


def _make_private(path: Path) -> None:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & stat.S_IWOTH:
        raise ConfigError(f"--db: others may have written {path}, which could be a program by now: remove it")
    path.chmod(0o600)
