"""The wheel that is built from this tree, installed alone: what it brings, what it asks for, and what it leaves out.

Each virtual environment here has the wheel and the packages that its metadata asks for, and no others.  Those are
lent by the environment that runs the tests, so no package index is asked.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from genqueue.cli.exits import ExitCode

from ..conftest import not_here

ROOT = Path(__file__).parents[2]
LEADS_ELSEWHERE = ("PYTHON", "GENQUEUE", "SETUPTOOLS_SCM", "VCS_VERSIONING")


def run(*command: object, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run it with these variables, and without what would lead Python, the build or genqueue elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEADS_ELSEWHERE)}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=100, check=False
    )


def run_well(*command: object, cwd: Path, **variables: str) -> str:
    """The same of a command that must succeed; its stdout."""
    done = run(*command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run_well(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", *options, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel.

    Attributes:
        folder: its own.
        needed: the packages that the wheel's metadata asks for, and theirs, by their canonical names.
        version: of genqueue there.
    """

    folder: Path
    needed: set[str]
    version: str

    def run(self, *command: object) -> "subprocess.CompletedProcess[str]":
        """Run a program of this environment."""
        return run(self.folder / "bin" / str(command[0]), *command[1:], cwd=self.folder)

    def python(self, code: str) -> str:
        """What a program that must succeed prints."""
        return run_well(self.folder / "bin/python", "-c", code, cwd=self.folder)


def needs(requirements: Iterable[str], extras: Iterable[str]) -> set[tuple[str, tuple[str, ...]]]:
    """(name, extras) of each requirement that holds on this machine with any of ``extras``."""
    parsed = [Requirement(each) for each in requirements]
    return {
        (canonicalize_name(each.name), tuple(sorted(each.extras)))
        for each in parsed
        for extra in ("", *extras)
        if each.marker is None or each.marker.evaluate({"extra": extra})
    }


def install(wheel: Path, folder: Path, *extras: str) -> Installed:
    """Make a virtual environment with the wheel, and lend it what that asks for with these extras."""
    run_well(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run_well(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    site = Path(run_well(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (ours,) = importlib.metadata.distributions(name="genqueue", path=[str(site)])
    left, seen = needs(ours.requires or (), extras), {("genqueue", extras)}
    while left:
        name, chosen = left.pop()
        seen.add((name, chosen))
        lent = ours if name == "genqueue" else importlib.metadata.distribution(name)
        left |= needs(lent.requires or (), chosen) - seen
        for top in {file.parts[0] for file in lent.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(lent.locate_file(top))))
    return Installed(folder, {name for name, _ in seen} - {"genqueue"}, ours.version)


@pytest.fixture(scope="module")
def service(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What ``pip install genqueue`` makes."""
    return install(wheel, tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def shell(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What ``pip install 'genqueue[cli]'`` makes."""
    return install(wheel, tmp_path_factory.mktemp("shell"), "cli")


def test_a_package_index_takes_its_metadata_and_shows_its_page(wheel):
    assert "PASSED" in run_well(sys.executable, "-m", "twine", "check", "--strict", wheel, cwd=wheel.parent)


def test_it_holds_the_three_packages_that_ship(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"genqueue", "genqueue_worker", "genqueue_ops"}
    assert {f"{package}/py.typed" for package in ("genqueue", "genqueue_worker", "genqueue_ops")} <= set(names)


def test_a_service_gets_pydantic_and_redis_and_no_more(service):
    asked = ["pydantic", "pydantic-settings", "redis[hiredis]"]
    allowed = {Requirement(each).name for each in asked}
    left = needs(asked, ())
    while left:
        name, extras = left.pop()
        allowed.add(name)
        left |= {pair for pair in needs(importlib.metadata.requires(name) or (), extras) if pair[0] not in allowed}
    assert service.needed == allowed
    assert service.needed.isdisjoint({"typer", "rich", "click", "celery", "kombu", "aiohttp", "huggingface-hub"})


def test_every_module_of_a_service_imports_with_that(service):
    imported = service.python(
        """
import importlib, pkgutil
import genqueue
assert ".venv" not in genqueue.__file__ and "site-packages" in genqueue.__file__, genqueue.__file__
extras = ("genqueue.cli.", "genqueue.haystack", "genqueue.__main__")
modules = [each.name for each in pkgutil.walk_packages(genqueue.__path__, "genqueue.")]
names = [name for name in modules if not name.startswith(extras)]
for name in names:
    importlib.import_module(name)
print(*names)
"""
    ).split()
    assert {"genqueue.client.aio", "genqueue.connection.store", "genqueue.doctor.gather", "genqueue.acl"} <= {*imported}


def test_a_service_asks_redis_with_that(service, redis_url):
    answer = service.python(
        f"""
from genqueue import GenerationClient, Settings, UnknownGeneratorError
with GenerationClient(Settings(redis_url={redis_url!r})) as client:
    print(client.overview().queues)
    try:
        client.submit("What is NLP?")  # its script is in the wheel, and runs
    except UnknownGeneratorError as error:
        print(error)
"""
    )
    assert answer.splitlines()[0] == "[]"
    assert answer.splitlines()[1].startswith("unknown generator 'default'; known: none")


@pytest.mark.parametrize("command", [("genqueue",), ("python", "-m", "genqueue")], ids=" ".join)
@pytest.mark.parametrize("arguments", [("--help",), ("submit", "x"), ("worker",)], ids=" ".join)
def test_without_the_extra_the_command_says_what_to_install(service, command, arguments):
    done = service.run(*command, *arguments)
    assert (done.returncode, done.stdout) == (ExitCode.CONFIG, "")
    assert (
        done.stderr == "genqueue: the command line needs typer, which is not installed: pip install 'genqueue[cli]'\n"
    )


def test_with_the_extra_it_lists_its_commands_and_none_of_the_lab(shell):
    done = shell.run("genqueue", "--help")
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    shown = {line.split()[1] for line in done.stdout.splitlines() if line.startswith(("│ ", "  ")) and line.split()[1:]}
    assert shown >= {"submit", "tail", "status", "cancel", "doctor", "dead", "worker", "demo", "flower", "tgi-standin"}
    assert shown.isdisjoint({"bench", "chaos", "scale"})
    assert shell.run("genqueue", "--version").stdout == f"genqueue {shell.version}\n"


def test_with_the_extra_alone_the_worker_says_what_it_needs(shell):
    done = shell.run("genqueue", "worker")
    assert (done.returncode, done.stdout) == (ExitCode.CONFIG, "")
    assert done.stderr.endswith("which is not installed: pip install 'genqueue[worker]'\n")


def test_it_has_no_lab(shell):
    done = shell.run("python", "-m", "genqueue_lab", "bench")
    assert done.returncode != 0
    assert done.stderr.endswith("No module named genqueue_lab\n")


def test_the_version_is_the_tags_or_what_the_image_is_told(tmp_path):
    if shutil.which("git") is None:
        not_here("no git: apt-get install git")
    if not (ROOT / ".git").exists():
        not_here("this is no clone: there are no tags to read")
    clone = tmp_path / "clone"

    def version(**variables: str) -> str:
        return run_well(sys.executable, "-m", "hatchling", "version", cwd=clone, **variables).strip()

    run_well("git", "clone", "--quiet", "--no-tags", ROOT, clone, cwd=tmp_path)
    shutil.copy(ROOT / "pyproject.toml", clone)
    somebody = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    run_well("git", *somebody, "commit", "--quiet", "--allow-empty", "-am", "This", cwd=clone)
    commit = run_well("git", "rev-parse", "HEAD", cwd=clone)
    untagged = version()
    assert untagged.startswith("0.1.dev")
    assert commit.startswith(untagged.partition("+g")[2])
    run_well("git", "tag", "v7.8.9", cwd=clone)
    assert version() == "7.8.9"
    shutil.rmtree(clone / ".git")
    assert version() == "0.0"
    (told,) = re.findall(r"^ENV (\w+)=\$\{GENQUEUE_VERSION\}$", (ROOT / "ops/Dockerfile").read_text(), re.MULTILINE)
    assert version(**{told: "1.2.3.dev4+g0123abc"}) == "1.2.3.dev4+g0123abc"
