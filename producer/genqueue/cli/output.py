"""Print: every command's way to stdout and stderr.

stdout has what was asked for: a model's text, lines about a generation, JSON, tables.  Text and JSON go out
to the byte where stdout is no terminal; lines and tables are always without what would forge another line.
``tests/unit/cli/test_output.py`` holds every package to this module.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from genqueue.terminal import escaped, harmless, one_line, unbroken

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

PIPED_WIDTH = 200
"""Columns of a table where there is no terminal, which would have a width."""


class UnwritableError(Exception):
    """stdout could not be written: a full disk, perhaps."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"stdout cannot be written: {cause.strerror or cause}")


def text(words: str) -> None:
    """A model's text, or a piece of it, on stdout at once."""
    _put(harmless(words) if sys.stdout.isatty() else words)


def line(words: str, **style: Any) -> None:
    """One line on stdout, in ``typer.style``'s ``style`` on a terminal."""
    _put(_styled(unbroken(words), style if sys.stdout.isatty() else {}) + "\n")


def json_line(value: Any, *, is_ascii: bool = True) -> None:
    """``value`` as one line of JSON on stdout."""
    json_document(json.dumps(value, ensure_ascii=is_ascii))


def json_document(document: str) -> None:
    """JSON on stdout, and a line's end."""
    _put((escaped(document) if sys.stdout.isatty() else document) + "\n")


def say(words: str) -> None:
    """One line of ours on stderr."""
    typer.echo(f"genqueue: {one_line(words)}", err=True)


def remark(words: str, **style: Any) -> None:
    """One line on stderr beside what stdout has, without our name."""
    typer.echo(_styled(unbroken(words), style), err=True)


def excerpt(words: str) -> None:
    """Several lines of something else, a log perhaps, on stderr."""
    typer.echo(harmless(words), err=True)


def console() -> "Console":
    """Of stdout, for tables: those of :func:`guarded`."""
    from rich.console import Console  # 50 ms that submit need not wait for

    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def table(shown: "RenderableType") -> None:
    """Something of rich's on stdout."""
    drawn = console()
    with drawn.capture() as captured:
        drawn.print(guarded(shown))
    _put(captured.get())


def guarded(shown: "RenderableType") -> "RenderableType":
    """The same without what a terminal would obey, but for rich's own."""
    return _Guarded(shown)


class _Guarded:
    def __init__(self, shown: "RenderableType") -> None:
        self._shown = shown

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["Segment"]:
        for segment in console.render(self._shown, options):
            yield segment if segment.control else type(segment)(harmless(segment.text), segment.style)


def _styled(words: str, style: dict[str, Any]) -> str:
    return typer.style(words, **style) if style else words


def _put(words: str) -> None:
    try:
        # As it is: click's echo takes escape sequences out of what goes into a pipe.
        sys.stdout.write(words)
        sys.stdout.flush()
    except BrokenPipeError:
        hush()
        raise typer.Exit(0) from None
    except OSError as error:
        hush()
        raise UnwritableError(error) from None


def hush() -> None:
    """stdout takes no more: Python flushes it once more when it ends, and shall find no closed pipe, or full disk."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
