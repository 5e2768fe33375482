"""What ``import genqueue`` gives: every type that somebody is handed has a name there."""

import dataclasses
import inspect
import types
import typing

import pydantic

import genqueue

CLASSES = [thing for name in genqueue.__all__ if inspect.isclass(thing := getattr(genqueue, name))]


def parts(annotation):
    """The classes that an annotation names."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return {annotation} if inspect.isclass(annotation) else set()
    origin = typing.get_origin(annotation)
    found = set() if origin in {typing.Literal, typing.Union, types.UnionType, typing.Annotated} else parts(origin)
    return found.union(*(parts(argument) for argument in arguments if not isinstance(argument, str)))


def returned(kind):
    """What its public methods return, and what its public fields hold."""
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") and member.__module__.startswith("genqueue"):
            yield typing.get_type_hints(member, include_extras=True).get("return")
    if dataclasses.is_dataclass(kind) or issubclass(kind, pydantic.BaseModel | tuple) or typing.is_typeddict(kind):
        yield from typing.get_type_hints(kind, include_extras=True).values()


def test_every_type_that_is_returned_is_exported():
    # A request's parts are as its submit took them: chat.py and request.py describe them.
    reached, left = set(), [kind for kind in CLASSES if kind is not genqueue.Settings]
    while left:
        kind = left.pop()
        if kind in reached or not kind.__module__.startswith("genqueue"):
            continue
        reached.add(kind)
        if kind not in {genqueue.GenerationRequest, genqueue.Settings, genqueue.GeneratorSettings}:
            left += [part for annotation in returned(kind) for part in parts(annotation)]
    assert {kind.__name__ for kind in reached} - set(genqueue.__all__) == set()
    assert {"Overview", "QueueStatus", "State", "Timings", "GenerationRequest", "Started", "Reading"} <= {
        kind.__name__ for kind in reached
    }


def test_every_error_is_exported():
    assert {
        name for name, thing in vars(genqueue.errors).items() if inspect.isclass(thing) and issubclass(thing, Exception)
    } <= set(genqueue.__all__)


def test_a_handle_can_be_specified_by_its_class():
    for kind in (genqueue.Generation, genqueue.AsyncGeneration):
        assert "id" in kind.__annotations__
