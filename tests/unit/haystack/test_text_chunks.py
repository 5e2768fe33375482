"""The queue's chunks as Haystack's streaming chunks: one for each token, the last one says how it ended."""

from haystack.dataclasses import ComponentInfo

from genqueue.haystack.text_chunks import TextChunks
from genqueue.wire.events import Chunk, Finished, Resumed, Token
from genqueue.wire.result import GenerationResult

INFO = ComponentInfo("a.component")
A, B = Token(1, " a", -0.5, False), Token(2, " b", -0.25, False)
END = Token(0, "</s>", -0.125, True)
RESULT = GenerationResult(
    replies=[""],
    meta=[{"finish_reason": "length", "usage": {"prompt_tokens": 5, "completion_tokens": 2}, "seed": 7}],
)
ENDING = {"finish_reason": "length", "generated_tokens": 2, "input_length": 5, "seed": 7}
FINISHED = Finished(seq=9, attempt=1, finish_reason="length", completion_tokens=2)


def chunk(*tokens, text=None):
    text = "".join(token.text for token in tokens if not token.special) if text is None else text
    return Chunk(seq=1, attempt=1, text=text, tokens=tokens)


def shown(batches, result=RESULT):
    """(content, meta, start) of every streaming chunk."""
    chunks = TextChunks(INFO)
    made = [one for batch in batches for one in chunks.feed(batch)] + chunks.end(result)
    assert all((one.index, one.component_info) == (0, INFO) for one in made)
    assert [one.finish_reason for one in made] == [None] * (len(made) - 1) + ["length"]
    return [(one.content, one.meta, one.start) for one in made]


def test_tokens_that_came_together_are_apart_again():
    assert shown([[chunk(A, B), FINISHED]]) == [
        (" a", A._asdict(), True),
        (" b", {**B._asdict(), **ENDING}, False),
    ]


def test_what_comes_before_the_end_is_shown_at_once_and_what_comes_with_it_waits_for_the_result():
    chunks = TextChunks(INFO)
    assert [one.content for one in chunks.feed([chunk(A)])] == [" a"]
    assert chunks.feed([chunk(B), FINISHED]) == []
    assert [one.content for one in chunks.end(RESULT)] == [" b"]


def test_special_tokens_are_not_shown_but_the_last_one_says_how_it_ended():
    assert shown([[chunk(END, A)], [chunk(END), FINISHED]]) == [
        (" a", A._asdict(), True),
        ("", {**END._asdict(), **ENDING}, False),
    ]


def test_an_empty_stream_is_one_chunk():
    assert shown([[chunk(END), FINISHED]]) == [("", {**END._asdict(), **ENDING}, True)]
    assert shown([[FINISHED]]) == [("", ENDING, True)]


def test_text_that_its_tokens_do_not_spell_is_shown_whole():
    # Behind a continued attempt's first token may stand white space that was shown before.
    assert shown([[chunk(A, B, text="b")], [FINISHED]]) == [("b", B._asdict(), True), ("", ENDING, False)]


def test_where_no_tokens_are_named_each_piece_of_text_is_a_chunk():
    came_together = Chunk(seq=1, attempt=1, text="It is so", pieces=(2, 3, 3))
    assert shown([[chunk(text="So: ")], [came_together, FINISHED]]) == [
        ("So: ", {}, True),
        ("It", {}, False),
        (" is", {}, False),
        (" so", ENDING, False),
    ]


def test_a_text_that_goes_on_goes_on():
    assert [start for *_, start in shown([[chunk(A)], [Resumed(seq=2, attempt=2), chunk(B), FINISHED]])] == [
        True,
        False,
    ]
