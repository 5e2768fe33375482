"""How a worker's log lines look: for eyes on a terminal, one JSON object each anywhere else.

Every logger of the process writes through the one handler that is made here, Celery's and
other libraries' too.  What a line says beside its words (``extra``) is a field of its own; a
line about a generation has ``generation_id``.
"""

import json
import logging
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any, Literal, TextIO

from genqueue.terminal import escaped, harmless, unbroken

LogFormat = Literal["auto", "text", "json"]

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "data"}
_ANOTHER_FIELD = re.compile(r"[\s='\"]")
_QUIET = ("opentelemetry",)
"""Whose lines come again and again while one thing is wrong."""
_QUIET_S = 60.0


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line was given beside its words; the id of a generation also from Celery's own lines."""
    fields = {name: value for name, value in record.__dict__.items() if name not in _OWN and value is not None}
    data = record.__dict__.get("data")  # of Celery's lines about a task
    if isinstance(data, Mapping) and isinstance(data.get("id"), str):
        fields.setdefault("generation_id", data["id"])
    return fields


class TextFormatter(logging.Formatter):
    """Celery's own format, and the fields behind it."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s: %(levelname)s/%(processName)s] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback; one line, whatever is quoted in it."""
        words = unbroken(super().formatMessage(record))
        return " ".join([words, *(f"{name}={_brief(value)}" for name, value in fields_of(record).items())])

    def formatException(self, ei: Any) -> str:
        """A traceback below its line, indented, so that no words in it begin a line as a line of ours begins."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """The same of a stack that somebody asked for."""
        return _indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """One JSON object: ``time`` (UTC), ``level``, ``logger``, ``message``, the fields, ``exception`` of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, in ASCII and without a line break."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in fields_of(record).items() if name not in line}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(line, default=str))


def _indented(words: str) -> str:
    return textwrap.indent(harmless(words), "    ")


def _brief(value: Any) -> str:
    """Quoted where it could be read as another field, or as none."""
    if isinstance(value, float):
        return f"{value:.3f}"
    words = str(value)
    return words if words.isprintable() and not _ANOTHER_FIELD.search(words) and words else repr(words)


class Seldom(logging.Filter):
    """Lets the same line of those who repeat themselves pass once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._told_s: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.name.split(".", 1)[0] not in _QUIET:
            return True
        now_s, line = time.monotonic(), (record.name, record.msg)
        if now_s - self._told_s.get(line, -_QUIET_S) < _QUIET_S:
            return False
        self._told_s[line] = now_s
        return True


class _Forgiving(logging.StreamHandler[TextIO]):
    """Leaves a line out that cannot be written (a full disk, no descriptor), and says later how many it were.

    The standard library would write a traceback for each, and raises where a file is to be opened anew.
    """

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        lost = self.lost
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)
        if lost and self.lost == lost:
            self.lost = 0
            super().emit(
                logging.makeLogRecord(
                    {
                        "name": __name__,
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": "%d lines before this one could not be written",
                        "args": (lost,),
                    }
                )
            )

    def handleError(self, record: logging.LogRecord) -> None:
        """A line cannot be written."""
        self.lost += 1


class _ToFile(_Forgiving, WatchedFileHandler):
    """Writes to a file, which may be moved away."""


def is_json(log_format: LogFormat, stream: TextIO | None) -> bool:
    """Whether lines are JSON: as it is said, else where nobody reads them on a terminal (a file is no ``stream``)."""
    if log_format != "auto":
        return log_format == "json"
    return stream is None or not stream.isatty()


def set_up(log_format: LogFormat, level: int | str | None, path: str | None) -> None:
    """Have everything that is logged in this process go to ``path``, or to stderr, in one format."""
    stream = sys.__stderr__ if path is None else None
    handler = _Forgiving(stream) if path is None else _ToFile(path, encoding="utf-8")
    handler.setFormatter(JsonFormatter() if is_json(log_format, stream) else TextFormatter())
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers = [handler]
    if level:
        root.setLevel(level)


def where_raised(error: BaseException) -> str:
    """The lines of code that led to an error, without its words: these may quote what it was about."""
    return "".join([*traceback.format_tb(error.__traceback__), type(error).__name__])
