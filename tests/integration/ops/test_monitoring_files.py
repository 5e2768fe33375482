"""Dashboard, alerts and docs name metrics, labels and values that a worker has, in queries that Prometheus can read."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from genqueue.registry.attempts import append, claim, renew
from genqueue.registry.fleet import Health, announce
from genqueue.registry.sweeping import Queue, sweep
from genqueue.settings import GeneratorSettings
from genqueue_worker.observe.health import CONSUMER, ENGINE, LEASES
from genqueue_worker.observe.metrics import CHAT, TEXT_COMPLETION, Metrics, Now

ROOT = Path(__file__).parents[3]
PROMETHEUS, GRAFANA = ROOT / "ops" / "prometheus", ROOT / "ops" / "grafana"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
DASHBOARD = json.loads((GRAFANA / "dashboards" / "genqueue.json").read_text())
SCALING = yaml.safe_load((ROOT / "ops" / "kubernetes" / "scaling.yaml").read_text())
OF_THE_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""


def everything():
    """A worker with all that there is to see."""
    server = {"address": "http://tgi", "health": Health.UP, "running": 0, "calls": 0}
    silent_s = {ENGINE: 0.0, CONSUMER: 0.0, LEASES: 0.0}
    return Now({}, {"default": [server]}, {"default": Queue(0, 0.0, 0)}, 0, silent_s, True, 1, 0)


def scrape():
    """Every family of a worker that has done a bit of everything."""
    settings = GeneratorSettings.model_validate(
        {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi"}}
    )
    metrics = Metrics({"default": settings}, everything)
    for kind in (TEXT_COMPLETION, CHAT):
        call = metrics.of("default").call(kind)
        call.gaps.observe(0.1)
        call.first_chunk.observe(0.1)
        call.ended(0.1)
        call.ended(0.1, "timeout")
        call.used(1, 1)
        call.failed("http://tgi", "server", "500")
    held = [("id", 1)]
    for done in (
        append([], keep_s=60, owner="me"),
        claim("id", "default", owner="me", lease_s=3.0, keep_s=60),
        renew(held, lease_s=3.0, keep_s=60, owner="me"),
        sweep(["default"], lease_s=3.0, keep_s=60),
        announce({}, "me", {}, worker_s=30.0, keep_s=60),
    ):
        with metrics.round_trip(done):
            pass
    return list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))


FAMILIES = scrape()
SAMPLES = {
    name: [sample.labels for family in FAMILIES for sample in family.samples if sample.name == name]
    for name in {sample.name for family in FAMILIES for sample in family.samples}
}


def queries():
    """(where, PromQL) of everything that asks."""
    for group in RULES:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for trigger in SCALING["spec"]["triggers"]:
        yield "KEDA", trigger["metadata"]["query"]


QUERIES = [pytest.param(expr, id=f"{where}-{number}") for number, (where, expr) in enumerate(queries())]
METRIC = re.compile(r"\b(?:genqueue|gen_ai|process|python)_\w+(?!\w)(?=\s*[{\[\s),]|$)")


def metrics_in(expr):
    """The metrics that a query names; the labels in its matchers and groups are none."""
    return set(METRIC.findall(re.sub(r"\{[^}]*\}|\b(?:by|on|without)\s*\([^)]*\)", "", expr)))


def test_there_is_something_to_check():
    assert len(RULES[0]["rules"]) >= 10
    assert len(QUERIES) >= 50
    assert metrics_in('sum by (gen_ai_token_type) (rate(genqueue_no_such_total{a="b"}[5m])) / genqueue_other') == {
        "genqueue_no_such_total",
        "genqueue_other",
    }


@pytest.mark.parametrize("expr", QUERIES)
def test_every_metric_that_is_asked_for_exists(expr):
    named = metrics_in(expr)
    assert named
    assert named <= SAMPLES.keys()


@pytest.mark.parametrize("expr", QUERIES)
def test_so_do_its_labels_and_their_values(expr):
    named = metrics_in(expr)
    known = {label for name in named for labels in SAMPLES[name] for label in labels} | OF_THE_SCRAPE
    grouped = {label.strip() for found in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr) for label in found.split(",")}
    assert grouped <= known
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expr):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"', matchers):
            if label in OF_THE_SCRAPE or value.startswith("$"):
                continue
            values = {labels[label] for labels in SAMPLES[name] if label in labels}
            assert value in values, f"{name} has {label} {sorted(values)}, not {value!r} ({operator})"


@pytest.mark.parametrize("expr", QUERIES)
def test_whatever_the_scrape_is_called_a_query_finds_its_workers_and_nobody_else(expr):
    """Compose's Prometheus calls it genqueue; one that follows the pods' annotations does not."""
    assert not re.search(r"\bjob\s*[=!]", expr)
    if re.search(r"\b(?:up|process_\w+|python_\w+)\b", re.sub(r"\{[^}]*\}", "", expr)):  # others have these too
        assert re.search(r"\band on \(job, instance\) .*genqueue_worker_info", expr)


def test_every_alert_is_shown_to_fire_and_to_be_silent():
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    alerts = {rule["alert"] for group in RULES for rule in group["rules"]}
    silent, fires = set(), set()
    for each in tests:
        for checked in each["alert_rule_test"]:
            (fires if checked.get("exp_alerts") else silent).add(checked["alertname"])
    assert fires == silent == alerts


def test_the_docs_name_every_metric_and_no_other():
    told = re.findall(r"^\| `([a-z0-9_]+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert len(told) == len(set(told))
    ours = {name for name in SAMPLES if name.startswith(("genqueue", "gen_ai"))}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) if name.endswith("_bucket") else name for name in ours}
    shown = {name for name in shown if not re.search(r"_(sum|count)$", name)}
    assert set(told) == shown


def test_every_panel_is_on_the_grid_and_none_on_another():
    taken = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_compose_mounts_what_is_here():
    """Grafana reads its provisioning where the container has it, and finds Prometheus under its name."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in ("prometheus", "grafana"):
        for volume in services[service]["volumes"]:
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).is_dir()
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "genqueue.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[1::-1] for volume in services["grafana"]["volumes"])
    assert mounted[provider["options"]["path"]] == "./ops/grafana/dashboards"
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert str(discovery["port"]) == services["worker"]["environment"]["GENQUEUE_MONITOR_PORT"]
    assert set(discovery["names"]) <= services.keys()


# --- as Prometheus itself reads them ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def promtool():
    """``promtool("check", "rules", path)``: what it said; fails if it objects."""
    found = shutil.which("promtool")
    if found is None:
        missing = "no promtool: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*arguments, stdin=""):
        ran = subprocess.run(
            [found, *map(str, arguments)],
            input=stdin,
            cwd=PROMETHEUS,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    return run


def test_prometheus_reads_its_configuration_and_the_rules(promtool):
    assert "SUCCESS: 1 rule files found" in promtool("check", "config", "prometheus.yml")
    assert "SUCCESS: 17 rules found" in promtool("check", "rules", "rules.yml")


def test_the_alerts_fire_when_they_should(promtool):
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_prometheus_can_read_every_query(promtool, tmp_path):
    rules = []
    for number, (_, expr) in enumerate(queries()):
        query = expr.replace("$__rate_interval", "1m")
        rules.append({"record": f"query:{number}", "expr": query})
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", path)


def test_prometheus_finds_nothing_to_object_to_in_what_a_worker_shows(promtool):
    settings = GeneratorSettings.model_validate(
        {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi"}}
    )
    shown = generate_latest(Metrics({"default": settings}, everything).registry).decode()
    assert promtool("check", "metrics", stdin=shown) == ""
