"""Tell what looks like a secret where a name belongs, so that no log or error repeats it.

A token is pasted where the name of its variable, of a header or of a generator belongs, and the error that
says so would carry it into every log.  A password of a few plain letters looks like a name: for that nobody
can do anything here.  Pure.
"""

import re

MASK = "***"

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:hf_|api_org_|gh[opsur]_|github_pat_|glpat-|npm_|nvapi-|gsk_|r8_|dop_v1_)[A-Za-z0-9]{16}"
    r"|(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{20}"
    r"|xox[a-z]-[A-Za-z0-9-]{10}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30}|ya29\.|eyJ[A-Za-z0-9_-]{16}"
    r"|(?:Bearer|Basic)\s+\S)"
)
"""As those who give out tokens let them begin."""
_LOGIN = re.compile(r":[^\s@]*@")
"""As it stands before the host of an address."""
_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_CHANGES = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[0-9])|(?<=[A-Z][A-Z])(?=[a-z])|(?<=[0-9])(?=[A-Za-z])")
_CHANGES_OF_CHANCE = 0.25
"""More than that of a run's characters are of another kind than the one before, where chance has drawn them.

That a small letter follows the one capital that begins a word does not count.
"""


def is_token(word: str) -> bool:
    """Whether it begins, or holds something that begins, as a token of a known kind."""
    return _TOKEN.search(word) is not None


def looks_secret(word: str) -> bool:
    """Whether it may hold a secret: a token, an address, or letters and figures as chance draws them."""
    return (
        is_token(word)
        or "://" in word
        or _LOGIN.search(word) is not None
        or any(len(_CHANGES.findall(run)) > _CHANGES_OF_CHANCE * len(run) for run in _RUN.findall(word))
    )


def shown(name: str) -> str:
    """``name`` for a message; ``***`` where it may be a secret."""
    return MASK if looks_secret(name) else name


def shown_path(path: str) -> str:
    """The name of a file, which has letters and figures as it likes; ``***`` for a token or an address in its place."""
    return MASK if is_token(path) or ":/" in path else path
