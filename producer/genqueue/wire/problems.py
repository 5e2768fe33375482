"""What is wrong with what somebody wrote, in lines fit to be shown."""

from collections.abc import Mapping

from pydantic import (
    BaseModel,
    ValidationError,
)

from genqueue.masking import shown

_WORDS = {
    "tuple_type": "Input should be a valid list",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "extra_forbidden": "no such key",
}
"""In place of pydantic's, which speak of Python's types."""


def describe(error: ValidationError, known: Mapping[str, type[BaseModel]] | None = None) -> list[str]:
    """One readable line for each problem, with its place and never with the value (it may be a prompt or a secret).

    ``known`` is for each key the model whose fields are named where another one stands in it.
    """
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        if problem["type"] == "default_factory_not_called":  # pydantic's own note on another problem
            continue
        place = ".".join(shown(str(part)) for part in problem["loc"])  # a key may be a secret in the wrong place
        words = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").replace(
            "Tuple should", "List should"
        )
        if problem["type"] == "extra_forbidden" and (model := (known or {}).get(str(problem["loc"][-2:][0]))):
            lines.append(f"{place}: unknown; known: {', '.join(model.model_fields)}")
        elif problem["loc"] and problem["loc"][-1] == "return_full_text":
            lines.append(f"{place}: only False; a reply never holds the prompt")
        elif problem["type"] == "extra_forbidden" and (problem["loc"][0], problem["loc"][-1]) == (
            "generators",
            "token",
        ):
            lines.append(f"{place}: {words}; token_env names the variables that hold it")
        else:
            lines.append(f"{place}: {words}" if place else words)
    return lines
