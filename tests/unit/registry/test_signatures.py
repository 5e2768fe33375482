"""Every script's keys and arguments have their names from its declaration, and nowhere else."""

import ast
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from genqueue.registry import script as registry_script
from genqueue.registry import signatures
from genqueue.registry.declaring import Layout, Row, Signature

REGISTRY = Path(registry_script.__file__).parent
BODIES = {path.stem: path.read_text("utf-8") for path in (REGISTRY / "lua").glob("*.lua")}
COMMON = BODIES.pop("common")
LUA_WORDS = """
    and break do else elseif end false for function if in local nil not or repeat return then true until while
"""


def layout(name: str) -> Layout:
    return registry_script.script(name).layout


def test_each_script_is_declared_and_nothing_else_is():
    declared = {
        name
        for name, each in vars(signatures).items()
        if isinstance(each, type) and issubclass(each, Signature) and each is not Signature
    }
    assert declared == {name.capitalize() for name in BODIES}


@pytest.mark.parametrize("name", ["common", *BODIES])
def test_no_script_counts_its_keys_or_arguments(name):
    assert not re.search(r"\b(KEYS|ARGV)\b", {**BODIES, "common": COMMON}[name])


def test_no_room_puts_the_keys_and_arguments_of_a_script_in_an_order():
    """``scripted`` alone makes the call of a script, and takes nothing but a declaration."""
    calls = {
        (path.stem, len(node.args) + len(node.keywords))
        for path in REGISTRY.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Call"
    }
    assert {room for room, given in calls if given > 2} == {"script"}


@pytest.mark.parametrize("name", BODIES)
def test_a_script_goes_through_its_rows_once(name):
    declared = getattr(signatures, name.capitalize())
    rows = [each for each in get_type_hints(declared).values() for row in get_args(each) if row in Row.__subclasses__()]
    assert len(re.findall(r"\bnext_row\b", BODIES[name])) == len(re.findall(r"while next_row\(\) do", BODIES[name]))
    assert BODIES[name].count("next_row") == len(rows) <= 1


@pytest.mark.parametrize("name", BODIES)
def test_what_is_declared_is_used(name):
    assert [word for word in layout(name).names if not re.search(rf"\b{word}\b", BODIES[name])] == []


@pytest.mark.parametrize("name", BODIES)
def test_no_name_hides_another(name):
    names = layout(name).names
    assert len(names) == len(set(names))
    taken = {*LUA_WORDS.split(), "rest", "next_row", "row_key", "row_argument", "KEYS", "ARGV", "redis", "cjson"}
    taken |= set(re.findall(r"^local function (\w+)", COMMON + BODIES[name], re.MULTILINE))
    taken |= {word for words in re.findall(r"^local ([A-Z_, ]+) =", COMMON, re.MULTILINE) for word in words.split(", ")}
    assert taken.isdisjoint(names)
