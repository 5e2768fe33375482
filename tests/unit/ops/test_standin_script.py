"""What a script and a directive say."""

import pytest

from genqueue_ops.standin.script import DirectiveError, Fault, Script, changed, choose_fault, directed

BASE = Script(itl_s=0.02, tokens=100)


def test_a_directive_changes_what_it_names():
    assert directed(BASE, 'Hi {{standin {"tokens": 5}}} there') == Script(itl_s=0.02, tokens=5)


def test_a_prompt_without_directive_changes_nothing():
    assert directed(BASE, "Hi {{name}} {standin}") is BASE


def test_the_last_directive_of_a_conversation_counts():
    chat = 'user {{standin {"tokens": 5}}} assistant text user {{standin {"tokens": 6}}}'
    assert directed(BASE, chat).tokens == 6


def test_faults_nest_in_a_directive():
    script = directed(BASE, '{{standin {"faults": [{"kind": "status", "body": {"error": {}}}]}}}')
    assert script.faults == (Fault(kind="status", body={"error": {}}),)


@pytest.mark.parametrize(
    "directive",
    [
        "{{standin nonsense}}",
        "{{standin [1]}}",
        '{{standin {"tokens": 5} }}',
        '{{standin {"tokens": -5}}}',
        '{{standin {"token": 5}}}',
        '{{standin {"faults": [{"kind": "fire"}]}}}',
    ],
)
def test_a_wrong_directive_is_an_error(directive):
    with pytest.raises(DirectiveError):
        directed(BASE, directive)


def test_an_update_keeps_the_rest():
    faulty = changed(BASE, {"faults": [{"kind": "cut"}]})
    assert changed(faulty, {"itl_s": 0}).faults == faulty.faults


def test_a_fault_fires_its_times_for_each_prompt():
    script = Script(faults=(Fault(kind="cut", times=2), Fault(kind="reset", times=1)))
    fired: dict[str, int] = {}
    met = []
    for tag in "aaaabbbb":
        chosen = choose_fault(script, fired, tag)
        met.append(None if chosen is None else chosen[0].kind)
        if chosen is not None:
            fired[chosen[1]] = fired.get(chosen[1], 0) + 1
    assert met == ["cut", "cut", "reset", None, "cut", "cut", "reset", None]


def test_a_server_wide_fault_fires_its_times_for_all():
    script = Script(faults=(Fault(kind="refuse", times=1, scope="server"),))
    fault, key = choose_fault(script, {}, "a") or pytest.fail("no fault")
    assert fault.kind == "refuse"
    assert choose_fault(script, {key: 1}, "b") is None
