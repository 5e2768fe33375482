"""The scripts that go with a call."""

import pytest

from genqueue.registry import script as registry_script

SCRIPTS = [
    "announce",
    "append",
    "claim",
    "drop",
    "finish",
    "read",
    "release",
    "renew",
    "retry",
    "submit",
    "sweep",
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_read_once_and_known_by_its_digest(name):
    script = registry_script.script(name)
    assert registry_script.script(name) is script
    assert script.source.startswith("-- Put before every script")
    assert len(script.sha1) == 40
