"""What a terminal would obey never reaches one, and all else does."""

import json
import sys

import pytest

from genqueue.terminal import escaped, harmless, one_line, unbroken

OBEYED = {
    "nul": "\0",
    "bell": "\a",
    "backspace": "\b",
    "vertical-tab": "\v",
    "form-feed": "\f",
    "carriage-return": "\r",
    "shift-out": "\x0e",
    "escape": "\x1b",
    "file-separator": "\x1c",
    "delete": "\x7f",
    "next-line": "\x85",
    "csi-as-one": "\x9b",
    "osc-as-one": "\x9d",
    "string-terminator": "\x9c",
    "arabic-letter-mark": "\u061c",
    "left-to-right-mark": "\u200e",
    "right-to-left-mark": "\u200f",
    "line-separator": "\u2028",
    "paragraph-separator": "\u2029",
    "left-to-right-embedding": "\u202a",
    "right-to-left-override": "\u202e",
    "word-joiner": "\u2060",
    "left-to-right-isolate": "\u2066",
    "pop-isolate": "\u2069",
    "symmetric-swapping": "\u206a",
    "byte-order-mark": "\ufeff",
    "interlinear-annotation": "\ufff9",
    "high-half": "\ud800",
    "low-half": "\udfff",
}
KEPT = {
    "ascii": "a~!",
    "no-break-space": "a\xa0b",
    "soft-hyphen": "a\xadb",
    "persian-with-a-non-joiner": "می\u200cخواهم",
    "family-of-joined-signs": "👩\u200d👩\u200d👧",
    "hebrew": "שלום",
    "combining": "e\u0301",
    "beyond-the-first-plane": "\U0001f600\U00020000",
    "private-use": "\ue000",
    "replacement": "\ufffd",
}
every_obeyed = pytest.mark.parametrize("mark", OBEYED.values(), ids=OBEYED)
every_kept = pytest.mark.parametrize("words", KEPT.values(), ids=KEPT)


@every_obeyed
def test_in_a_text_it_is_replaced_wherever_it_stands(mark):
    assert harmless(f"{mark}a{mark}\n\tb{mark}") == "\ufffda\ufffd\n\tb\ufffd"


@every_kept
def test_other_characters_stay(words):
    assert harmless(words) == words
    assert unbroken(words) == words
    assert escaped(words) == words


def test_a_text_may_be_cut_anywhere():
    text = "one\x1b[31mtwo\r\n\u202ethree"
    assert "".join(map(harmless, text)) == harmless(text)


@every_obeyed
@pytest.mark.parametrize("to_line", [one_line, unbroken])
def test_a_line_is_one_line(mark, to_line):
    line = to_line(f"a{mark}state   finished\nb\r\nc\td")
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert mark not in line


def test_foreign_words_keep_no_white_space_to_align_with_and_ours_do():
    words = "  no answer\n\n   state    finished \t"
    assert one_line(words) == "no answer state finished"
    assert unbroken("state   waiting\nx") == "state   waiting x"


@every_obeyed
def test_json_stays_the_same_document(mark):
    document = json.dumps({f"a{mark}": [mark, "b"]}, ensure_ascii=False)
    written = escaped(document)
    assert json.loads(written) == json.loads(document)
    assert written.isprintable()


def test_nothing_that_python_would_not_print_is_kept_but_what_scripts_need():
    """A character that a newer Unicode adds to these kinds is noticed here."""
    invisible = {"\n", "\t", "\xad", "\u200b", "\u200c", "\u200d", "\u180e"}
    passed = {
        character
        for character in map(chr, range(0x10000))
        if not character.isprintable() and not character.isspace() and harmless(character) == character
    }
    controls = {character for character in passed if ord(character) < 0x100}
    assert controls <= invisible
    assert not {c for c in passed if 0x2000 <= ord(c) < 0x2070} - invisible
    assert sys.maxunicode == 0x10FFFF
