"""The pages and files for contributors name what is there: folders, commands, Pythons, servers."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_folder_of_code_is_described_and_every_described_folder_is_there():
    rows = CONTRIBUTING.partition("| folder | what is there |\n")[2].partition("\n\n")[0].splitlines()
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert {name for name in described if not (ROOT / name).is_dir()} == set()
    packages = {
        str(path.parent.relative_to(ROOT))
        for wing in ("producer/genqueue", "worker/genqueue_worker")
        for path in [ROOT / wing / "__init__.py", *(ROOT / wing).glob("*/__init__.py")]
    }
    assert packages | {"ops/genqueue_ops", "ops/genqueue_lab"} <= described


@pytest.mark.parametrize(
    "page",
    ["CONTRIBUTING.md", ".github/workflows/ci.yml", ".github/PULL_REQUEST_TEMPLATE.md", ".pre-commit-config.yaml"],
)
def test_every_target_of_make_that_is_named_is_there(page):
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"(?:`|: |&& |^)make (?:PYTHON=\S+ )?([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_every_file_that_is_named_is_there(page):
    named = set(re.findall(r"\b(?:tests|ops|producer|worker)/[\w./-]+\.\w+", (ROOT / page).read_text()))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_workflow_runs_every_python_that_the_metadata_names():
    names = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    tried = WORKFLOW["jobs"]["python"]["strategy"]["matrix"]["python"]
    assert set(names) <= set(tried)
    assert f">={tried[0]}" == PROJECT["requires-python"]


def test_the_workflow_names_servers_that_there_are():
    servers = WORKFLOW["jobs"]["server"]["strategy"]["matrix"]["server"]
    script = (ROOT / ".ci/on-server").read_text()
    assert set(re.findall(r"^  ([\w.-]+)\) version=", script, re.MULTILINE)) == set(servers)
    done = subprocess.run([ROOT / ".ci/on-server", "redis-1", "true"], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout) == (2, "")
    assert all(server in done.stderr for server in servers)
