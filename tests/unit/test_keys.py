"""One file spells the keys, and its docstring lists them all."""

import inspect
import re
from importlib.resources import files
from pathlib import Path

import pytest

from genqueue import keys

BUILDERS = {
    "generation": ("<id>",),
    "log": ("<id>",),
    "text": ("<id>",),
    "live": ("<id>",),
    "waiting": ("<generator>",),
    "newest_claimed": ("<generator>",),
    "idempotency": ("<key>",),
    "worker": ("<owner>",),
    "untold": ("<owner>",),
    "queue": ("<generator>",),
    "result": ("<id>",),
}


def listed() -> set[str]:
    """The first column of the table."""
    assert keys.__doc__ is not None
    lines = keys.__doc__.splitlines()
    table = lines[2 : lines.index("", 2)]
    return {line.split()[0] for line in table[1:]}


def test_the_table_lists_exactly_the_keys_that_are_made():
    built = {getattr(keys, name)(*arguments) for name, arguments in BUILDERS.items()}
    built |= {
        keys.LEASES,
        keys.DELAYED,
        keys.DEADLINES,
        keys.RUNG,
        keys.SWEPT,
        keys.DEAD,
        keys.GENERATORS,
        keys.WORKERS,
        keys.PLACES,
        keys.SILENT,
    }
    built = {name.replace("generate.<generator>", "generate.<generator>[sep<p>]") for name in built}
    assert listed() == built


def test_every_function_of_the_module_is_in_the_table():
    functions = {name for name, _ in inspect.getmembers(keys, inspect.isfunction)}
    assert functions == BUILDERS.keys() | {"doorbell", "names_a_generation"}


@pytest.mark.parametrize("package", ["genqueue", "genqueue_worker"])
def test_no_other_module_spells_a_key(package):
    spelled = re.compile(r"genqueue:(?=\w)|celery-task-meta-")
    folder = files(package)
    sources = [path for path in Path(str(folder)).rglob("*") if path.is_file()]
    offenders = {
        source.name: line
        for source in sources
        if source.name.endswith((".py", ".lua")) and source.name != "keys.py"
        for line in source.read_text("utf-8").splitlines()
        # Prose may name Celery's result key; code may not build one.
        if spelled.search(line) and "``" not in line
    }
    assert offenders == {}


@pytest.mark.parametrize(
    ("priority", "expected"), [(0, "generate.chat"), (1, "generate.chat\x06\x161"), (9, "generate.chat\x06\x169")]
)
def test_each_priority_has_a_list_of_its_own(priority, expected):
    assert keys.doorbell("chat", priority) == expected


def test_the_separator_is_kombus():
    redis_transport = pytest.importorskip("kombu.transport.redis")
    assert redis_transport.Channel.sep == keys.PRIORITY_SEPARATOR


ENDINGS = [
    "",
    ":log",
    ":text",
    ":live",
    ":",
    ":x",
    ":log:x",
    ":LOG",
    " :log",
    ":log ",
    ":logs",
    "log",
    ":untold",
    ":text:text",
]


def test_no_two_generations_and_no_two_purposes_share_a_key():
    """Whatever an id ends with: one that would is none."""
    ids = [start + end + more for start in ("x", "x:log", ":") for end in ENDINGS for more in ENDINGS]
    valid = {each for each in ids if keys.names_a_generation(each)}
    made = [make(each) for each in valid for make in (keys.generation, keys.log, keys.text, keys.result)]
    assert len(made) == len(set(made))
    refused = {each for each in ids if not keys.names_a_generation(each)}
    assert refused == {each for each in ids if each.endswith((":log", ":text"))}


@pytest.mark.parametrize("word", [*ENDINGS[1:], "generation:x", "x:log", "x:text", "x:live"])
def test_what_a_caller_names_stays_behind_its_own_prefix(word):
    """An idempotency key, a generator's name or a worker's: none is a generation's key, its log or its text."""
    ids = ["x", "x" + word, word]
    of_generations = {make(each) for each in ids for make in (keys.generation, keys.log, keys.text, keys.result)}
    made = {make(word) for make in (keys.idempotency, keys.waiting, keys.newest_claimed, keys.untold, keys.queue)}
    shared = {keys.LEASES, keys.DELAYED, keys.DEADLINES, keys.RUNG, keys.SWEPT, keys.DEAD, keys.GENERATORS}
    shared |= {keys.PLACES, keys.WORKERS}
    assert len(made) == 5
    assert not made & (of_generations | shared)
    assert not of_generations & shared
