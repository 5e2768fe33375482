"""Which references of a JSON schema lead out of it.

Pure.  A schema travels in ``response_format``, in a tool's ``parameters``, in a ``grammar`` and in names of
``extra_body``.  Engines, the validators they are built on and the gateways before them resolve ``$ref`` as they like:
Python's ``jsonschema`` and Rust's fetch an address or open a file, unless they are told not to.  So a reference stays
in its schema (``#/$defs/…``, ``#anchor``), or the request goes to no server of ours.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

REFERENCE = "$ref"
"""In ``allowed_extra_body``: references that lead out of their schema."""
_REFERENCES = frozenset({REFERENCE, "$dynamicRef", "$recursiveRef"})
_MAY_BE_TEXT = frozenset({"value", "schema", "json", "json_schema", "guided_json", "structural_tag", "parameters"})
"""Under these names engines take a schema as the JSON of it, too."""


class _Place(NamedTuple):
    """The place of a value; ``name`` is that of the field that it, or its list, is."""

    parent: "_Place | None"
    step: str
    name: str

    def __str__(self) -> str:
        steps, place = [self.step], self.parent
        while place is not None:
            steps.append(place.step)
            place = place.parent
        return ".".join(reversed(steps))


def remote_references(form: Mapping[str, Any]) -> list[str]:
    """The places of references that lead out, in whatever holds schemas.

    ``$schema`` and ``$id`` name a schema, and are none.  Of a name that stands twice in a schema's text both count,
    since parsers differ in which they take.
    """
    places: list[str] = []
    rest: list[tuple[_Place | None, Any]] = [(None, form)]
    while rest:
        place, value = rest.pop()
        if isinstance(value, Mapping):
            rest += [(_Place(place, str(key), str(key)), value[key]) for key in reversed(list(value))]
        elif isinstance(value, list | tuple):
            name = place.name if place else ""
            rest += [(_Place(place, str(number), name), value[number]) for number in reversed(range(len(value)))]
        elif place is None or not isinstance(value, str):
            continue
        elif place.name in _REFERENCES and value and not value.startswith("#"):
            places.append(str(place))
        elif place.name in _MAY_BE_TEXT and value.lstrip()[:1] in ("{", "["):
            try:
                rest.append((place, json.loads(value, object_pairs_hook=_all_of)))
            except RecursionError:
                places.append(str(place))
            except ValueError:  # a pattern, or what no engine reads either
                continue
    return places


def _all_of(pairs: list[tuple[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else [{name: value} for name, value in pairs]
