"""One file spells the keys, and its docstring lists them all."""

import inspect
import re
from importlib.resources import files

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
    sources = [*folder.iterdir(), *(folder / "lua").iterdir()] if package == "genqueue" else list(folder.iterdir())
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
