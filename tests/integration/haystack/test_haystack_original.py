"""A user of Haystack sees no difference: our outcomes beside those recorded of the original.

``make compare-haystack`` makes the recording's calls anew, with the original in an environment of its own.
"""

import json
import sys
from pathlib import Path

import pytest

from genqueue_lab.haystack.calls import CHAT, CONSTRUCTORS, TEXT, WRITTEN
from genqueue_lab.haystack.compare import calls, compare

ORIGINAL = json.loads((Path(__file__).parents[2] / "fixtures/haystack/original.json").read_text(encoding="utf-8"))
CASES = [
    *(f"text: {name}" for name in TEXT),
    *(f"chat: {name}" for name in CHAT),
    *(f"{kind} written: {name}" for name in WRITTEN for kind in ("text", "chat")),
    "text written: a token",
    *(f"{kind} constructor: {name}" for name in CONSTRUCTORS for kind in ("text", "chat")),
    "chat constructor: tools of one name",
    "chat constructor: tools and streaming",
]


@pytest.fixture(scope="module")
def compared(fleet_of, standin):
    kinds = ("text_generation_inference", "inference_endpoints")
    with fleet_of({kind: {"api_type": kind, "api_params": {"url": standin.url}} for kind in kinds}) as fleet:
        fleet.staff(1)
        ours = calls(sys.executable, "ours", standin.url, GENQUEUE_REDIS_URL=fleet.producer_url)
    return {one.case: one for one in compare(ORIGINAL, ours)}


def test_every_case_is_recorded_and_made(compared):
    assert set(CASES) == set(ORIGINAL) == set(compared)


@pytest.mark.parametrize("case", CASES)
def test_the_outcome_is_the_originals_or_its_put_right(compared, case):
    assert compared[case].ours == compared[case].expected
