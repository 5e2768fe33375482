"""That the rights of each role are those that its scripts and calls need, and no others.

The sources are read: which calls a role's package makes, which scripts they run, and which commands
these say on which keys.
"""

import ast
import re
from pathlib import Path

import pytest

from genqueue import keys
from genqueue.acl import CELERYS, CHANNELS, COMMANDS, OURS, users_acl
from genqueue.registry.script import script as script_named

ROOT = Path(__file__).parents[2]
LUA = ROOT / "producer/genqueue/registry/lua"
CALLS = "".join(path.read_text() for path in sorted((ROOT / "producer/genqueue/registry").glob("*.py")))
SCRIPTS = [script_named(path.stem) for path in sorted(LUA.glob("*.lua")) if path.stem != "common"]
GENERATION, QUEUE, RESULT = keys.generation("*"), keys.queue("*"), keys.result("*")


def as_granted(pattern):
    """The pattern by which a role is given keys: a generation's log and text come with its record."""
    return GENERATION if pattern in (keys.log("*"), keys.text("*")) else pattern


DECLARED = [
    (name, as_granted(pattern))
    for script in SCRIPTS
    for named in (script.layout.channels, script.layout.derived_keys, script.layout.keys)
    for name, pattern in named.items()
]
# What a word of a script, or a function of keys.py, stands for.
MEANS = {**dict(DECLARED), "each": QUEUE}
# What a script could say, but not for these callers.
NEVER = {
    "producer": {
        # A cancel brings no text and makes no dead letter; only a worker ends a generation otherwise.
        *((name, GENERATION) for name in ("append", "del")),
        *((name, keys.DEAD) for name in ("zadd", "zremrangebyscore", "expire", "ttl")),
    },
    "worker": {(name, keys.idempotency("*")) for name in ("get", "set")},  # it adopts what has no key
    "operator": set(),
    "flower": set(),
}
LOOKS = {"hello", "clock", "info", "snapshot_rules", "overview", "read_workers"}
"""The calls of doctor and status, whoever runs them."""


def functions(source):
    return dict(re.findall(r"^local function (\w+)(.*?^end)", source, re.MULTILINE | re.DOTALL))


COMMON = functions((LUA / "common.lua").read_text())


def whole(script):
    """A script and what it uses of common.lua."""
    text, known = (LUA / f"{script}.lua").read_text(), set()
    while more := {name for name in COMMON if name not in known and re.search(rf"\b{name}\(", text)}:
        known |= more
        text += "".join(f"\nlocal function {name}{COMMON[name]}" for name in sorted(more))
    return text


def stands_for(word, text):
    """The patterns of the keys that a name may be: a key's, a loop's, or a function's first argument's."""
    if word in MEANS:
        return {MEANS[word]}
    listed = re.findall(rf"for _, {word} in ipairs\(\{{([^}}]*)\}}", text)
    given = [
        argument
        for function in re.findall(rf"local function (\w+)\({word}\b", text)
        for argument in re.findall(rf"(?<!function )\b{function}\((\w+)", text)
    ]
    words = {*", ".join(listed).split(", "), *given} - {"", word}
    assert words, f"whose key is {word!r}?"
    return set().union(*(stands_for(one, text) for one in words))


def said_by(script):
    """Every (command, pattern) of a script; the pattern "" where there is no key."""
    text = whole(script)
    calls = re.findall(r"redis\.p?call\(\s*'(\w+)'(?:,\s*(\w+))?", text)
    if "local function ask(" in text:  # ask(command, what an unreadable key counts as, key, …)
        calls += re.findall(r"\bask\('(\w+)', [^,]+, (\w+)", text)
    return {(name.lower(), pattern) for name, key in calls for pattern in (stands_for(key, text) if key else {""})}


def named_of_the_registry(source):
    """The functions and classes of genqueue.registry that a module names, whatever it imports them as."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    rooms = {each.asname or each.name for node in imports if node.module == "genqueue.registry" for each in node.names}
    named = {each.name for node in imports if node.module.startswith("genqueue.registry.") for each in node.names}
    return named | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms
    }


def needs(role):
    """Every (command, pattern) that the calls of a role's package need."""
    folder = {"producer": "producer/genqueue", "worker": "worker/genqueue_worker"}.get(role)
    sources = [] if folder is None else [path.read_text() for path in (ROOT / folder).rglob("*.py")]
    made = LOOKS.union(*map(named_of_the_registry, sources))
    needed = set()
    bodies = dict(re.findall(r"^def (\w+)\((.*?)(?=^[^\s)])", CALLS, re.MULTILINE | re.DOTALL))
    for name in made & bodies.keys():
        body = bodies[name] + "".join(bodies.get(helper, "") for helper in re.findall(r"\b(_\w+)\(", bodies[name]))
        for script in re.findall(r"\bsignatures\.(\w+)(?<!Row)\(", body):
            needed |= said_by(script.lower())
        for command, key in re.findall(r'Call\(\s*\(\s*"(\w+)"(?:, keys\.(\w+))?', body):
            needed.add((command.lower(), MEANS[key.lower()] if key else ""))
    return needed - NEVER[role]


def granted(selectors):
    return {(name, pattern) for names, patterns in selectors for name in names.split() for pattern in patterns}


@pytest.mark.parametrize("role", ["producer", "worker", "operator"])
def test_a_role_has_the_rights_that_its_scripts_and_calls_need_and_no_others(role):
    needed = needs(role)
    channels = {pattern for name, pattern in needed if name == "publish"}
    assert channels <= set(CHANNELS[role]) or keys.EVERY in CHANNELS[role]
    on_keys = {(name, pattern) for name, pattern in needed if pattern and name != "publish"}
    ours = granted(OURS[role])
    assert on_keys == {(name, pattern) for name, pattern in ours if name not in {"eval", "evalsha"}}
    hidden = set() if role == "operator" else {"info", "config"}  # doctor asks, and does without
    alone = {name for name, pattern in needed if not pattern} - hidden  # eval without keys needs one with any
    assert alone - {"eval"} <= set(re.findall(r"[a-z]+", COMMANDS[role]))


def test_the_sources_are_understood():
    assert ("zcount", keys.LEASES) in said_by("overview")
    assert ("expire", keys.PLACES) in said_by("announce")
    assert ("zrem", keys.RUNG) in said_by("renew")
    assert ("hmget", GENERATION) in said_by("release")
    assert ("zrank", keys.waiting("*")) in needs("producer")
    assert ("rpush", QUEUE) in needs("worker")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("from genqueue.registry import server\nserver.info()", {"info"}, id="a-room"),
        pytest.param("from genqueue.registry import reading as read\nread.read_log(1)", {"read_log"}, id="renamed"),
        pytest.param("from genqueue.registry.attempts import claim as take\ntake()", {"claim"}, id="a-function"),
        pytest.param("from genqueue.registry import fleet\nrun = fleet.retire", {"retire"}, id="handed-on"),
        pytest.param("server = listen()\nserver.info()", set(), id="a-name-like-a-room"),
        pytest.param("from genqueue.registry import server\nself.server.info()", set(), id="an-attribute-like-one"),
    ],
)
def test_what_a_module_takes_from_the_registry_is_told_by_its_imports(source, expected):
    assert named_of_the_registry(source) == expected


def test_what_celery_needs_is_on_its_own_keys():
    patterns = {pattern for selectors in CELERYS.values() for _, pattern in granted(selectors)}
    assert [pattern for pattern in patterns if pattern.startswith(keys.EVERY[:-1])] == []


def test_the_file_for_redis_is_current():
    assert (ROOT / "ops/redis/users.acl").read_text() == users_acl(), "make acl"
