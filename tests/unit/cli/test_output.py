"""All that commands print goes through genqueue.cli.output, and what that lets through."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from genqueue.cli import output

ROOT = Path(__file__).parents[3]
FILES = sorted(path for part in ("producer", "worker", "ops") for path in (ROOT / part).rglob("*.py"))
ITSELF = {"producer/genqueue/cli/output.py"}
NO_COMMAND = {
    "producer/genqueue/__main__.py": "one line where typer is not installed, with which output.py prints",
    "producer/genqueue/acl.py": "make acl, of constants",
    "ops/genqueue_lab/haystack/calls.py": "JSON for the program that started it",
    "ops/genqueue_ops/local_redis.py": "one fixed word for the program that started it",
    "ops/genqueue_lab/scale/drive.py": "a word and ASCII JSON for the program that started it",
}
PRINTS = {"print", "pprint", "echo", "secho", "echo_via_pager", "Console", "print_exc", "print_exception", "input"}
HOSTILE = "a\x1b]0;PWN\a\x1b[31m\nforged: line\x9b2J\u202e\u2028b"


class Stream(io.StringIO):
    def __init__(self, *, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def printed(is_terminal, prints, *arguments, **options):
    """(stdout, stderr) of what ``prints`` prints."""
    streams = Stream(is_terminal=is_terminal), Stream(is_terminal=is_terminal)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        prints(*arguments, **options)
    return tuple(stream.getvalue() for stream in streams)


on_both = pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])


def ways_out(path):
    """(line, what) for each call or name in a file by which something gets to a terminal."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            called = ast.unparse(node.func)
            if name in PRINTS or (name == "SystemExit" and not _is_guarded(node)):
                yield node.lineno, name
            if called == "os.write" or re.search(r"\bstd(out|err)\b.*\.write$", called):
                yield node.lineno, called


def _is_guarded(call):
    """Whether words with which Python would end on stderr pass one_line."""
    return all(
        isinstance(each, ast.Constant)
        or (isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "one_line")
        for each in call.args
    )


def test_no_command_goes_around_it():
    allowed = ITSELF | NO_COMMAND.keys()
    assert {str(path.relative_to(ROOT)) for path in FILES} >= allowed
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        if str(path.relative_to(ROOT)) not in allowed
        for line, what in ways_out(path)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "print('x')",
        "typer.echo(x)",
        "click.secho(x)",
        "sys.stdout.write(x)",
        "sys.stderr.buffer.write(x)",
        "os.write(1, x)",
        "raise SystemExit(f'genqueue: {error}')",
        "Console(stderr=True).print(x)",
    ],
)
def test_the_walk_sees_each_way_out(code, tmp_path):
    (tmp_path / "one.py").write_text(code)
    assert list(ways_out(tmp_path / "one.py"))


@on_both
def test_a_text_of_a_model_is_exact_but_for_a_terminal(is_terminal):
    written, _ = printed(is_terminal, output.text, HOSTILE)
    if is_terminal:
        assert written == "a\ufffd]0;PWN\ufffd\ufffd[31m\nforged: line\ufffd2J\ufffd\ufffdb"
    else:
        assert written == HOSTILE


@on_both
@pytest.mark.parametrize("prints", [output.line, output.say, output.remark])
def test_a_line_is_one_line_wherever_it_goes(is_terminal, prints):
    (written,) = "".join(printed(is_terminal, prints, HOSTILE)).splitlines()
    assert written.isprintable()


@on_both
def test_style_is_for_a_terminal_only(is_terminal):
    written, _ = printed(is_terminal, output.line, "words", bold=True)
    assert ("\x1b[1m" in written) == is_terminal


@on_both
def test_several_lines_of_a_log_stay_lines_and_obey_nothing(is_terminal):
    _, written = printed(is_terminal, output.excerpt, HOSTILE)
    assert written.count("\n") == 2
    assert written.replace("\n", "").isprintable()


@on_both
def test_json_is_the_same_document_on_one_line(is_terminal):
    written, _ = printed(is_terminal, output.json_line, {"a": HOSTILE}, is_ascii=False)
    assert json.loads(written) == {"a": HOSTILE}
    if is_terminal:
        assert written.removesuffix("\n").isprintable()
    else:
        assert "\u202e" in written


@on_both
def test_a_table_obeys_nothing_that_a_cell_forgot(is_terminal):
    made = Table()
    made.add_column("one")
    made.add_row(Text(HOSTILE))
    written, _ = printed(is_terminal, output.table, made)
    assert "PWN" in written
    for mark in ("\x1b]", "\x1b[31m", "\a", "\x9b", "\u202e", "\u2028"):
        assert mark not in written
