"""The doorbell's bytes; tests/contract/broker/test_celery.py holds them against Celery's own."""

import base64
import json

import pytest

from genqueue import keys
from genqueue.registry.submitting import doorbell_message, doorbell_template


def test_a_doorbell_holds_the_id_and_no_argument():
    message = json.loads(doorbell_message("some-id", "chat", 3))
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([], {})
    assert not any(embed.values())
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == "some-id"
    assert message["headers"]["task"] == "genqueue.generate"
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "generate.chat"}
    assert message["properties"]["priority"] == 3


@pytest.mark.parametrize("priority", keys.PRIORITIES)
def test_a_template_that_is_filled_in_is_the_message(priority):
    filled = doorbell_template().decode()
    for place, value in {"id": "some-id", "generator": "chat", "priority": priority}.items():
        filled = filled.replace(f"{{{place}}}", str(value))
    assert filled.encode() == doorbell_message("some-id", "chat", priority)
