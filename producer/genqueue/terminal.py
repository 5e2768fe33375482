"""What a terminal would obey, taken out of what is to be printed.

A model's text, a server's error, a worker's name: all of them come from somewhere else, and a terminal
cannot tell them from what the command itself says.  An escape sequence moves the cursor or sets the
window's title, a line break forges a line, a bidirectional mark shows ``a-evil`` as ``live-a``.
Each character is judged alone, so a text may be cut anywhere.  Pure; :mod:`genqueue.cli.output` prints.
"""

import json
import re

_OBEYED = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1: ESC, BEL, CR, and CSI as one character
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, embeddings, overrides, isolates
    r"\u2028\u2029"  # line and paragraph separator
    r"\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # unseen: joiners and operators, deprecated ones, annotations
    r"\ud800-\udfff"  # halves of pairs, which no encoding has
)
_IN_TEXT = re.compile(f"[{_OBEYED}]")
_IN_LINE = re.compile(r"[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
REPLACEMENT = "\ufffd"


def harmless(text: str) -> str:
    """``text`` with its line feeds and tabs, and U+FFFD for each character that a terminal would obey."""
    return _IN_TEXT.sub(REPLACEMENT, text)


def unbroken(line: str) -> str:
    """One line, its spaces kept: a space for each line break and tab, U+FFFD for what else would be obeyed."""
    return harmless(_IN_LINE.sub(" ", line))


def one_line(message: str) -> str:
    """Foreign words as part of a line: one space for each run of white space, U+FFFD for what would be obeyed."""
    return harmless(" ".join(message.split()))


def escaped(document: str) -> str:
    r"""JSON that means the same, with ``\u001b`` and the like for each character that a terminal would obey."""
    return _IN_TEXT.sub(lambda match: json.dumps(match[0])[1:-1] if match[0] != "\x7f" else r"\u007f", document)
