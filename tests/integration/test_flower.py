"""``genqueue flower`` as a process, and in a real browser: who may come in, what is shown, what the button ends.

The pictures of docs/ are made by these tests where GENQUEUE_PICTURES names a folder.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from genqueue import GenerationCancelledError
from genqueue.cli import ExitCode
from genqueue_ops.local_redis import free_port
from genqueue_ops.processes import Child

from ..conftest import not_here
from .conftest import clean_environment, toml_of
from .roles import as_role, password

USER, SECRET = "watcher", "canary-flower-password"
CHROMIUM = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1920,640"
)


class Flower:
    """``genqueue flower``, stopped and started again at the same place."""

    def __init__(self, folder, redis_url, generators, **environ):
        (folder / "genqueue.toml").write_text(toml_of(generators))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {
            **{name: value for name, value in clean_environment(folder).items() if not name.startswith("FLOWER")},
            "GENQUEUE_REDIS_URL": as_role(redis_url, "flower"),
            "FLOWER_BASIC_AUTH": f"{USER}:{SECRET}",
            "FLOWER_DB": str(folder / "kept" / "flower"),
            **environ,
        }
        command = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in settings.items())]
        command += ["sh", "-c", 'cd "$0" && exec "$@"', str(folder)]
        command += [sys.executable, "-m", "genqueue", "flower", "--port", str(self.port)]
        self.child = Child("Flower", command, folder / "flower.log")

    def start(self):
        self.child.start()
        self.child.wait_until(lambda logged: "Connected to" in logged, 30)
        return self

    def get(self, path, *, user=None, secret=SECRET):
        """(status, text) of a page."""
        request = urllib.request.Request(self.url + path)
        if user:
            request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def generators(standin):
    return {"default": {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}}


@pytest.fixture(scope="module")
def fleet(fleet_of, generators):
    with fleet_of(generators) as opened:
        opened.staff(1)
        yield opened


@pytest.fixture(scope="module")
def flower(fleet, generators, tmp_path_factory):
    started = Flower(tmp_path_factory.mktemp("flower"), fleet.redis.url, generators).start()
    yield started
    started.child.end()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        not_here("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for word in [*CHROMIUM.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


def picture(browser, name):
    folder = os.environ.get("GENQUEUE_PICTURES")
    if folder:
        browser.save_screenshot(str(Path(folder) / name))


def row_of(browser, generation):
    """The generation's line on the tasks page, by column; {} while it is not there."""
    heads = [each.get_attribute("data-column") for each in browser.find_elements(By.CSS_SELECTOR, "#tasks-table th")]
    cells = browser.find_elements(By.CSS_SELECTOR, f"[id='{generation.id}'] td")
    return dict(zip([head for head in heads if head], [cell.text for cell in cells], strict=False)) if cells else {}


# --- in the browser -----------------------------------------------------------------------------


def test_a_running_generation_is_seen_terminated_and_seen_cancelled(
    flower, fleet, browser, standin, ask, read, eventually
):
    done_prompt = ask(tokens=12)
    fleet.client.submit(done_prompt).result(timeout_s=10)
    prompt = ask(tokens=2000, itl_s=0.05)
    reading = read(fleet.client.submit(prompt))
    eventually(lambda: len(reading.events) > 5)

    browser.get(f"{flower.url}/tasks")
    assert not browser.find_elements(By.ID, "tasks-table")  # nobody comes in without a password
    browser.get(f"http://{USER}:{SECRET}@127.0.0.1:{flower.port}/tasks")

    def shown():
        browser.get(f"{flower.url}/tasks")
        return eventually(lambda: row_of(browser, reading.generation), within_s=5)

    row = eventually(lambda: (found := shown()).get("state") == "STARTED" and found)
    assert row["generator"] == "default"
    assert row["attempt"] == "1"
    assert float(row["queue_wait_s"]) < 10
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    assert row["prompt"] == f"{len(prompt)} characters, sha256 {digest}"
    picture(browser, "flower-tasks.png")

    browser.get(f"{flower.url}/task/{reading.generation.id}")
    picture(browser, "flower-running.png")
    browser.find_element(By.ID, "task-terminate").click()
    with pytest.raises(GenerationCancelledError) as ended:
        reading.generation.result(timeout_s=10)
    assert ended.value.partial_text
    eventually(lambda: standin.only(prompt)["state"] == "dropped")  # the call to the model server

    def is_revoked():
        browser.get(f"{flower.url}/task/{reading.generation.id}")
        return "REVOKED" in browser.find_element(By.ID, "task-page").text

    eventually(is_revoked)
    picture(browser, "flower-cancelled.png")


# --- over HTTP ----------------------------------------------------------------------------------


def test_pages_and_api_are_closed_and_health_is_not(flower):
    for path in ("/", "/tasks", "/workers", "/broker", "/api/tasks", "/api/workers"):
        assert flower.get(path)[0] == 401, path
        assert flower.get(path, user=USER, secret="wrong")[0] == 401, path
        assert flower.get(path, user=USER)[0] == 200, path
    # SECURITY.md says so of these two.
    assert flower.get("/healthcheck")[0] == 200
    assert flower.get("/metrics")[0] == 200


def test_the_phases_of_what_is_done_and_the_depth_of_queues_are_shown(flower, fleet, ask, eventually):
    prompt = ask(tokens=12, itl_s=0.005)
    generation = fleet.client.submit(prompt)
    generation.result(timeout_s=10)
    page = eventually(lambda: "SUCCESS" in (found := flower.get(f"/task/{generation.id}", user=USER)[1]) and found)
    for words in ("Generator", "Queue wait", "First text", "Completion tokens", "Prompt", ">13<"):
        assert words.lower() in " ".join(page.split()).replace("> ", ">").replace(" <", "<").lower(), words
    assert prompt not in page
    assert prompt.answer not in page
    assert "generate.default" in flower.get("/broker", user=USER)[1]


def test_no_page_shows_a_password(flower, fleet, ask):
    fleet.client.submit(ask()).result(timeout_s=10)
    (worker,) = fleet.workers
    pages = ["/", "/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/api/tasks", "/metrics"]
    pages += [f"/worker/{name}" for name in ("celery@" + os.uname().nodename,)]
    shown = "".join(flower.get(path, user=USER)[1] for path in pages) + flower.child.log.read_text()
    assert worker.process.poll() is None
    assert "generate.default" in shown
    for secret in (SECRET, *(password(role) for role in ("producer", "worker", "flower"))):
        assert secret not in shown


def test_what_it_saw_it_knows_after_a_restart(fleet, generators, tmp_path, ask, eventually):
    flower = Flower(tmp_path, fleet.redis.url, generators).start()
    try:
        generation = fleet.client.submit(ask(tokens=3))
        generation.result(timeout_s=10)
        eventually(lambda: "SUCCESS" in flower.get(f"/task/{generation.id}", user=USER)[1])
        flower.child.end()
        flower.start()
        page = flower.get(f"/task/{generation.id}", user=USER)[1]
        assert "SUCCESS" in page
        assert "sha256" in page
    finally:
        flower.child.end()


# --- how it may be started ----------------------------------------------------------------------


def test_it_does_not_start_open_where_others_reach_it(tmp_path):
    for environ in ({}, {"FLOWER_UNAUTHENTICATED_API": "true"}, {"FLOWER_BASIC_AUTH": ""}):
        done = subprocess.run(
            [sys.executable, "-m", "genqueue", "flower", "--address", "0.0.0.0"],
            env={**clean_environment(tmp_path), **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == ExitCode.CONFIG
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("genqueue: address 0.0.0.0: others can reach it, so FLOWER_BASIC_AUTH=user:password")


def test_on_this_host_its_pages_may_be_open_its_api_is_not(fleet, generators, tmp_path):
    environ = {"FLOWER_BASIC_AUTH": "", "FLOWER_UNAUTHENTICATED_API": "true"}
    flower = Flower(tmp_path, fleet.redis.url, generators, **environ).start()
    try:
        assert flower.get("/tasks")[0] == 200
        assert flower.get("/api/tasks")[0] == 401
    finally:
        flower.child.end()


def test_where_it_cannot_remember_it_does_not_start(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "genqueue", "flower", "--db", str(tmp_path / "file" / "flower")],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ExitCode.CONFIG
    assert "--db" in done.stderr
