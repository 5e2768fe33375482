"""The README is run: its Python and its shell sessions against a demo, its tables against the code.

The texts there are a language model's; here the scripted text stands in for it, so what is
checked is that everything runs and says nothing unexpected, not what the model says.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genqueue import GeneratorSettings, Settings, load_settings
from genqueue.cli.exits import ExitCode

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SERVED = "genqueue demo --serve"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(session):
    return [line.removeprefix("$ ") for line in session.splitlines() if line.startswith("$ ")]


SESSIONS = [session for session in blocks("console") if commands(session) != [f".venv/bin/{SERVED}"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory, real_redis):
    """The environment that a shell has after the README's ``genqueue demo --serve`` and its ``export``."""
    folder = tmp_path_factory.mktemp("demo")
    scripts = Path(sys.executable).parent
    bare = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GENQUEUE_")},
        "PATH": f"{scripts}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        [*SERVED.split(), "--engine", "scripted", "--max-new-tokens", "1"],
        cwd=folder,
        env=bare,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        exported = next(line for line in process.stdout if line.startswith("    export GENQUEUE_"))
        yield {**bare, **dict(pair.split("=", 1) for pair in exported.split()[1:])}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.fixture
def run(served, tmp_path):
    def run(*command, **changed):
        return subprocess.run(
            command, cwd=tmp_path, env={**served, **changed}, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.mark.parametrize("code", [pytest.param(code, id=f"python-{n}") for n, code in enumerate(blocks("python"))])
def test_every_python_example_runs_and_ends_by_itself(run, code):
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_example_of_an_error_shows_what_it_says(run):
    done = run(sys.executable, "-c", blocks("python")[-1])
    assert done.stdout == blocks("text")[-1]


@pytest.mark.parametrize("session", [pytest.param(found, id=commands(found)[0]) for found in SESSIONS])
def test_every_shell_session_runs(run, session):
    # What `make demo` does once everything is installed.
    demo = "genqueue demo --engine scripted --max-new-tokens 8"
    lines = [line.replace("make demo", demo) for line in commands(session)]
    done = run("sh", "-eu", "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
    for shown in re.findall(r"^(?:genqueue: |exit code ).*$", session, re.MULTILINE):
        assert shown in done.stdout + done.stderr


def test_a_stream_that_is_left_half_read_does_not_hold_up_the_end_of_the_program(run):
    code = (
        "from genqueue import GenerationClient\n"
        "client = GenerationClient()\n"
        "chunks = client.submit('x', generation_kwargs={'max_new_tokens': 5000}).stream()\n"
        "print(next(chunks).text)\n"
    )
    done = run(sys.executable, "-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_configuration_shown_is_valid_and_names_every_default(monkeypatch, tmp_path):
    shortest, whole = blocks("toml")
    # What is the default of some types only is shown behind a #.
    (tmp_path / "genqueue.toml").write_text(whole.replace("# token_env", "token_env"), encoding="utf-8")
    (tmp_path / "shortest.toml").write_text(shortest, encoding="utf-8")
    for name in [name for name in os.environ if name.startswith("GENQUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.redis_url == Settings.model_fields["redis_url"].default
    shown = settings.generators["default"]
    assert set(shown.model_fields_set) == set(GeneratorSettings.model_fields)
    assert shown.token_env == GeneratorSettings.DEFAULT_TOKEN_ENV
    assert shown.max_queue_depth == GeneratorSettings.model_fields["max_queue_depth"].default
    monkeypatch.setenv("GENQUEUE_CONFIG", "shortest.toml")
    assert load_settings().generators["default"].api_params.url == shown.api_params.url


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_table_with_its_default(name):
    default = Settings.model_fields[name].default
    (row,) = re.findall(rf"^\| `GENQUEUE_{name.upper()}`, `{name}` \| (.+?) \|", README, re.MULTILINE)
    if not default:  # {} or None
        assert row == "none"
    elif isinstance(default, str):
        assert row == f"`{default}`"
    else:
        assert float(row) == default


def test_every_exit_code_is_in_the_table_in_the_words_of_the_command():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(str(code.value), code.meaning) for code in ExitCode]


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^#)]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target


def test_every_section_that_is_linked_exists():
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= sections
