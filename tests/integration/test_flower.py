"""``genqueue flower`` as a process, and in a real browser: who may come in, what is shown, what the button ends.

The pictures of docs/ are made by these tests where GENQUEUE_PICTURES names a folder.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import redis
from flower.urls import handlers
from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from tornado.web import RequestHandler, url

from genqueue import GenerationCancelledError, GenerationError, State
from genqueue.cli.exits import ExitCode
from genqueue_ops.local_redis import free_port
from genqueue_ops.processes import Child
from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import tag_of

from ..support.missing import not_here
from ..support.programs import plain_celery
from ..support.roles import as_role, password, refusals
from ..support.waiting import wait_for
from ..support.workers import TOKENS, clean_environment, toml_of

ROOT = Path(__file__).parents[2]
BARE = ("-m", "celery", "-A", "genqueue_worker.app", "flower")
BY_CELERY = (*BARE, f"--conf={ROOT / 'ops/flower.py'}")
BY_A_PROGRAM = ("-c", "import sys; from genqueue_worker.app import app; app.start(['flower', *sys.argv[1:]])")
COMMANDS = [
    pytest.param(("-m", "genqueue", "flower"), id="genqueue"),
    pytest.param(BY_CELERY, id="celery-with-our-file"),
    pytest.param(BARE, id="celery-alone"),
    pytest.param(BY_A_PROGRAM, id="a-program"),
]
USER, SECRET = "watcher", "canary-flower-password"
IN_SETTINGS = ("canary-of-header", "canary-of-address", "canary-of-query")
CHROMIUM = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1920,640"
)


def basic(user, secret):
    return base64.b64encode(f"{user}:{secret}".encode()).decode()


class Flower:
    """``genqueue flower``, stopped and started again at the same place."""

    def __init__(self, folder, redis_url, generators, *, by=("-m", "genqueue", "flower"), **environ):
        (folder / "genqueue.toml").write_text(toml_of(generators))
        self.redis_url = redis_url
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
        self.command = [*command, sys.executable, *by, f"--port={self.port}"]
        self.child = Child("Flower", self.command, folder / "flower.log")

    def start(self):
        """Until it hears events, which is after it says that it is connected."""
        before = hear_events(self.redis_url)
        self.child.start()
        self.child.wait_until(lambda logged: "Connected to" in logged, 30)
        wait_for(lambda: hear_events(self.redis_url) - before)
        return self

    def run(self):
        """To the end, which must come by itself."""
        return subprocess.run(self.command, capture_output=True, text=True, timeout=60)

    def get(self, path, *, user=None, secret=SECRET):
        """(status, text) of a page."""
        request = urllib.request.Request(self.url + path)
        if user:
            request.add_header("Authorization", f"Basic {basic(user, secret)}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def hear_events(redis_url):
    """The connections that Celery's events come by: of all who hear, only they take a pattern."""
    with redis.Redis.from_url(redis_url) as operator:
        return {each["id"] for each in operator.client_list() if int(each["psub"])}


def listeners(port):
    """The addresses on which somebody listens at a port, as Linux has them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = {row[1].partition(":") for row in rows if row[3] == "0A"}
    return {
        ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
        for address, _, at in found
        if int(at, 16) == port
    }


@pytest.fixture(scope="module")
def generators(standin, closed_port):
    tgi, (header, user, key) = "text_generation_inference", IN_SETTINGS
    silent = f"http://user:{user}@127.0.0.1:{closed_port}/?key={key}"
    return {
        "default": {
            "api_type": tgi,
            "api_params": {"url": standin.url, "headers": {"x-key": header}},
            "token_env": ["STANDIN_KEY"],
            "max_attempts": 1,
        },
        "silent": {"api_type": tgi, "api_params": {"url": silent}},
    }


@pytest.fixture(scope="module")
def fleet(fleet_of, generators):
    with fleet_of(generators, **TOKENS) as opened:
        opened.staff(1)
        yield opened


@pytest.fixture(scope="module")
def flower(fleet, generators, tmp_path_factory):
    started = Flower(tmp_path_factory.mktemp("flower"), fleet.redis.url, generators, **TOKENS).start()
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


def sha256_of(prompt):
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


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
        with contextlib.suppress(AssertionError):  # then the page is asked for again
            return eventually(lambda: row_of(browser, reading.generation), within_s=5)
        return {}

    row = eventually(lambda: (found := shown()).get("state") == "STARTED" and found)
    assert row["generator"] == "default"
    assert row["attempt"] == "1"
    assert float(row["queue_wait_s"]) < 10
    assert row["prompt"] == f"{len(prompt)} characters, sha256 {sha256_of(prompt)}"
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


def test_when_it_started_stays_and_nothing_is_left_prefetched(flower, fleet, ask, eventually):
    """What workers tell besides is no event of Celery's that would be taken for another start."""

    def info():
        status, text = flower.get(f"/api/task/info/{generation.id}", user=USER)
        return json.loads(text) if status == 200 else {}

    def counted(name, **labels):
        families = text_string_to_metric_families(flower.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    starts = counted("flower_events_total", type="task-started")
    generation = fleet.client.submit(ask(tokens=2000, itl_s=0.05))
    running = eventually(lambda: (found := info()).get("prompt") and found)
    assert running["state"] == "STARTED"
    generation.cancel()
    ended = eventually(lambda: (found := info()).get("outcome") and found["state"] == "REVOKED" and found)
    assert ended["started"] == running["started"] < ended["revoked"]

    generation = fleet.client.submit(ask(tokens=100, itl_s=0.01))
    generation.result(timeout_s=10)
    ended = eventually(lambda: (found := info()).get("state") == "SUCCESS" and found)
    assert ended["completion_tokens"] == 101
    assert ended["succeeded"] - ended["started"] > 0.3
    assert counted("flower_events_total", type="task-started") - starts == 2
    assert counted("flower_worker_prefetched_tasks") == 0


def addresses(worker, ids):
    """By the pattern of its route, each address of Flower's that shows something of a worker and of tasks."""
    table = "?draw=1&start=0&length=500&search[value]=&order[0][column]=0&order[0][dir]=desc&columns[0][data]=received"
    return {
        "/": ["/"],
        "/workers": ["/workers", "/workers?json=1&refresh=1"],
        "/worker/(.+)": [f"/worker/{worker}"],
        "/task/(.+)": [f"/task/{task}" for task in ids],
        "/tasks": ["/tasks"],
        "/tasks/datatable": [f"/tasks/datatable{table}"],
        "/broker": ["/broker"],
        "/api/workers": ["/api/workers?refresh=1", "/api/workers"],
        "/api/tasks": ["/api/tasks"],
        "/api/task/types": ["/api/task/types"],
        "/api/queues/length": ["/api/queues/length"],
        "/api/task/info/(.*)": [f"/api/task/info/{task}" for task in ids],
        "/api/task/result/(.+)": [f"/api/task/result/{task}" for task in ids],
        "/metrics": ["/metrics"],
        "/healthcheck": ["/healthcheck"],
    }


def answered_routes():
    """The patterns of those that answer GET, but for what is the same for everybody."""
    routes = [(each.regex.pattern.rstrip("$"), each.target) if isinstance(each, url) else each for each in handlers]
    found = {route[0] for route in routes if route[1].get is not RequestHandler.get}
    return found - {"/login/?", "/logout", "/static/(.*)", ".*"}


def test_nothing_that_flower_shows_or_logs_holds_a_secret_a_prompt_or_a_reply(flower, fleet, ask, read, eventually):
    prompts, chats, ids = [], [], []

    def prompt(**script):
        prompts.append(ask(**script))
        return prompts[-1]

    def ended(generation):
        ids.append(generation.id)
        with contextlib.suppress(GenerationError):
            generation.result(timeout_s=20)

    client = fleet.client
    ended(client.submit(prompt()))
    ended(client.submit(prompt(), generation_kwargs={"top_p": 1.0}))
    failures = {422: "GenerationRejectedError('HTTP 422')", 500: "GenerationFailedError('HTTP 500')"}
    for status, exception in failures.items():  # of a server that quotes all it was sent
        ended(client.submit(prompt(faults=[{"kind": "status", "status": status, "body": "no", "quotes": True}])))
        info = f"/api/task/info/{ids[-1]}"
        told = eventually(lambda info=info: "FAILURE" in (text := flower.get(info, user=USER)[1]) and json.loads(text))
        assert (told["exception"], told["traceback"]) == (exception, None)
    chats.append(prompt(tokens=9, reasoning=3))
    ended(client.submit_chat([{"role": "user", "content": chats[-1]}]))
    cancelled = read(client.submit(prompt(tokens=5000, itl_s=0.02)))
    eventually(lambda: len(cancelled.events) > 5)
    cancelled.generation.cancel()
    ended(cancelled.generation)
    # What a plain Celery producer sends holds its prompt.
    with plain_celery(fleet.producer_url) as app:
        for task, more in (
            ("genqueue.generate", {}),
            ("genqueue.generate", {"max": 1}),
            ("genqueue.generat", {}),
        ):
            sent = app.send_task(task, kwargs={"prompt": prompt(), **more}, queue="generate.default")
            with contextlib.suppress(Exception):
                sent.get(timeout=10)
            assert sent.ready()
            ids.append(sent.id)
    running = read(client.submit(prompt(tokens=5000, itl_s=0.02)))
    eventually(lambda: len(running.events) > 5)
    ids.append(running.generation.id)
    alien = sent.id  # it is no task, so Flower hears nothing of it
    known = "celery@" + os.uname().nodename
    for path in (f"/task/{task}" for task in ids if task != alien):
        eventually(lambda path=path: flower.get(path, user=USER)[0] == 200)
    eventually(lambda: running.generation.id in flower.get(f"/worker/{known}", user=USER)[1])

    asked = addresses(known, ids)
    assert asked.keys() == answered_routes()
    answers = {path: flower.get(path, user=USER) for paths in asked.values() for path in paths}
    running.generation.cancel()
    shown = "".join(text for _, text in answers.values()) + flower.child.log.read_text()
    assert all(task in shown for task in ids if task != alien)
    refused = {path for path, (status, _) in answers.items() if status != 200}
    assert {path for path in refused if "/result/" not in path and alien not in path} == set()
    assert sha256_of(prompts[0]) in shown
    passwords = [SECRET, *map(password, ("producer", "worker", "flower"))]
    assert [secret for secret in (*passwords, *TOKENS.values(), *IN_SETTINGS) if secret in shown] == []
    texts = [render([{"role": "user", "content": chat}]) for chat in chats]
    canaries = [re.search("[0-9a-f]{32}", each)[0] for each in prompts]
    canaries += [tag_of(each) + "-" for each in [*prompts, *texts]]
    assert [word for word in canaries if word in shown] == []
    # Results it may not even read.
    assert {path for paths in asked.values() for path in paths if "/result/" in path} <= refused
    with redis.Redis.from_url(fleet.redis.url) as operator:
        assert all(" key celery-task-meta-" in entry for entry in refusals(operator))
        operator.acl_log_reset()


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


# --- who is let in, and what lies on disk -------------------------------------------------------


def said(port, method, path, *headers, unix_socket=None):
    """(status, head, body) of a request with these lines of header and no other, Host neither."""
    family = socket.AF_UNIX if unix_socket else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(10)
        connection.connect(unix_socket or ("127.0.0.1", port))
        lines = [f"{method} {path} HTTP/1.1", *headers, "Connection: close", "Content-Length: 0", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = b""
        while read := connection.recv(65_536):
            answer += read
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.decode().lower(), body.decode()


@pytest.fixture(scope="module")
def open_flower(fleet, generators, tmp_path_factory):
    """One without a password, by ``--open-api``."""
    folder = tmp_path_factory.mktemp("open-flower")
    by = ("-m", "genqueue", "flower", "--open-api")
    started = Flower(folder, fleet.redis.url, generators, by=by, FLOWER_BASIC_AUTH="").start()
    yield started
    started.child.end()


HOSTS = ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}"]


@pytest.mark.parametrize("host", HOSTS)
def test_an_open_api_is_for_programs_of_this_host_and_its_own_pages(open_flower, fleet, ask, eventually, host):
    host = host.format(port=open_flower.port)
    worker = "celery@" + os.uname().nodename
    eventually(lambda: worker in said(open_flower.port, "GET", "/api/workers?refresh=1", f"Host: {host}")[2])
    for more in ([], ["Sec-Fetch-Site: same-origin", f"Origin: http://{host}"]):
        generation = fleet.client.submit(ask(tokens=5000, itl_s=0.02))
        path = f"/api/task/revoke/{generation.id}?terminate=true"
        status, head, _ = said(open_flower.port, "POST", path, f"Host: {host}", *more)
        assert status == 200
        assert "access-control" not in head
        with pytest.raises(GenerationCancelledError):
            generation.result(timeout_s=10)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(["Host: evil.example", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site"], id="page"),
        pytest.param(["Host: evil.example"], id="rebound-name"),
        pytest.param(["Host: localhost:{port}", "Origin: http://evil.example"], id="origin"),
        pytest.param(["Host: localhost:{port}", "Origin: null"], id="sandbox"),
        pytest.param(["Host: localhost:{port}", "Sec-Fetch-Site: cross-site"], id="cross-site"),
        pytest.param(["Host: localhost:{port}", "Origin: http://localhost:3000"], id="another-port"),
    ],
)
def test_an_open_api_is_for_no_other_page(open_flower, fleet, ask, headers):
    headers = [line.format(port=open_flower.port) for line in headers]
    generation = fleet.client.submit(ask(tokens=400, itl_s=0.02))
    try:
        for method, path in (
            ("POST", f"/api/task/revoke/{generation.id}?terminate=true"),
            ("POST", f"/api/worker/shutdown/celery@{os.uname().nodename}"),
            ("OPTIONS", f"/api/task/revoke/{generation.id}"),
            ("GET", "/api/tasks"),
            ("GET", "/tasks/datatable?draw=1&start=0&length=9"),
            ("GET", "/workers?json=1"),
            ("GET", "/metrics"),
            ("GET", "/"),
        ):
            status, head, body = said(open_flower.port, method, path, *headers)
            assert (status, "access-control" in head) == (403, False), path
            assert generation.id not in body
        assert generation.status().state in {State.QUEUED, State.RUNNING}
    finally:
        generation.cancel()


def test_no_other_page_shows_it_in_a_frame(open_flower, flower):
    for where, login in ((open_flower, []), (flower, [f"Authorization: Basic {basic(USER, SECRET)}"])):
        status, head, _ = said(where.port, "GET", "/tasks", f"Host: localhost:{where.port}", *login)
        assert status == 200
        assert "x-frame-options: deny" in head


def test_with_a_password_it_answers_by_any_name(flower):
    login = f"Authorization: Basic {basic(USER, SECRET)}"
    assert said(flower.port, "GET", "/tasks", "Host: flower.example", login)[0] == 200
    assert said(flower.port, "GET", "/tasks", "Host: flower.example")[0] == 401


@pytest.mark.parametrize("credentials", ["usér:x", "watcher:\u202e", ":", "", "watcher", "\x00:\x00"])
def test_any_other_password_is_refused_in_the_same_way(flower, credentials):
    encoded = base64.b64encode(credentials.encode()).decode()
    for path in ("/tasks", "/api/tasks"):
        status, _, _ = said(flower.port, "GET", path, "Host: f", f"Authorization: Basic {encoded}")
        assert status == 401


def test_its_database_is_its_users_alone_though_it_was_there_before(fleet, generators, tmp_path):
    flower = Flower(tmp_path, fleet.redis.url, generators, XDG_STATE_HOME=str(tmp_path), FLOWER_DB="")
    folder = tmp_path / "genqueue"
    folder.mkdir(mode=0o755)
    for _ in range(2):
        flower.start()
        flower.child.end()  # saves
        files = list(folder.iterdir())
        assert files
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        for path in files:
            path.chmod(0o644)


@pytest.mark.parametrize("by", COMMANDS)
def test_a_database_that_others_may_write_ends_the_start(fleet, generators, tmp_path, by):
    flower = Flower(tmp_path, fleet.redis.url, generators, by=by, FLOWER_PERSISTENT="true")
    (tmp_path / "kept").mkdir()
    kept = tmp_path / "kept" / "flower.dat"
    kept.write_text("")
    kept.chmod(0o666)
    done = flower.run()
    assert done.returncode == ExitCode.CONFIG
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"genqueue: --db: others may have written {kept}")


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


def test_what_lies_around_does_not_change_how_it_starts(fleet, generators, tmp_path):
    (tmp_path / "flowerconfig.py").write_text("address, basic_auth, tasks_columns = '0.0.0.0', [], 'uuid'\n")
    (tmp_path / "other.py").write_text("raise SystemExit('was read')\n")
    flower = Flower(tmp_path, fleet.redis.url, generators, FLOWER_CONF=str(tmp_path / "other.py")).start()
    try:
        assert flower.get("/tasks")[0] == 401
        assert "First token" in flower.get("/tasks", user=USER)[1]
        assert listeners(flower.port) == {"127.0.0.1"}
    finally:
        flower.child.end()


def test_it_needs_no_generators(fleet, tmp_path, ask, eventually):
    flower = Flower(tmp_path, fleet.redis.url, {})
    (tmp_path / "genqueue.toml").unlink()
    flower.start()
    try:
        eventually(lambda: "generate.default" in flower.get("/broker", user=USER)[1])
        generation = fleet.client.submit(ask(tokens=3))
        generation.result(timeout_s=10)
        eventually(lambda: "SUCCESS" in flower.get(f"/task/{generation.id}", user=USER)[1])
    finally:
        flower.child.end()


def test_a_redis_that_refuses_it_ends_the_start(fleet, generators, tmp_path):
    wrong = as_role(fleet.redis.url, "flower").replace(password("flower"), "canary-of-another")
    done = Flower(tmp_path, fleet.redis.url, generators, GENQUEUE_REDIS_URL=wrong).run()
    assert done.returncode == ExitCode.REDIS
    (line,) = done.stderr.splitlines()
    assert re.match("genqueue: Redis at .* refuses the credentials", line)
    assert "canary" not in done.stdout + done.stderr
    with redis.Redis.from_url(fleet.redis.url) as operator:
        assert [refused.split(" ")[:2] for refused in refusals(operator)] == [["genqueue-flower", "auth"]]
        operator.acl_log_reset()  # meant, and no other's


def test_a_port_that_is_taken_ends_the_start_in_one_line(fleet, generators, tmp_path, closed_port):
    done = Flower(tmp_path, fleet.redis.url, generators)
    done.command[-1] = f"--port={closed_port}"
    ended = done.run()
    assert ended.returncode == ExitCode.CONFIG
    (line,) = ended.stderr.splitlines()
    assert line == f"genqueue: --address, --port: cannot listen on 127.0.0.1:{closed_port}: Address already in use"


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"FLOWER_UNIX_SOCKET": "{folder}/f.sock"}, "FLOWER_UNIX_SOCKET"),
        ({"FLOWER_unix_socket": "{folder}/f.sock"}, "FLOWER_unix_socket"),
        ({"FLOWER_BASIC_AUTH": " : "}, "FLOWER_BASIC_AUTH"),
        ({"FLOWER_BASIC_AUTH": "usér:x"}, "FLOWER_BASIC_AUTH"),
        ({"FLOWER_DEBUG": "true"}, "FLOWER_DEBUG"),
        ({"FLOWER_COOKIE_SECRET": "guessed"}, "FLOWER_COOKIE_SECRET"),
    ],
)
@pytest.mark.parametrize("by", COMMANDS)
def test_what_goes_around_the_password_ends_the_start_in_one_line(fleet, generators, tmp_path, environ, names, by):
    given = {"FLOWER_BASIC_AUTH": "", **{name: value.format(folder=tmp_path) for name, value in environ.items()}}
    done = Flower(tmp_path, fleet.redis.url, generators, by=by, **given).run()
    assert done.returncode == ExitCode.CONFIG
    assert "Traceback" not in done.stderr
    # Flower has read the variable by then where Celery starts it: it is told by its usual name.
    assert done.stderr.splitlines()[-1].startswith((f"genqueue: {names}: ", f"genqueue: {names.upper()}: "))
    assert not (tmp_path / "f.sock").exists()


def test_a_unix_socket_with_a_password_is_its_users_and_groups(fleet, generators, tmp_path):
    path = tmp_path / "f.sock"
    flower = Flower(tmp_path, fleet.redis.url, generators, FLOWER_UNIX_SOCKET=str(path)).start()
    try:
        assert path.stat().st_mode & 0o777 == 0o660
        assert listeners(flower.port) == set()
        assert said(0, "GET", "/tasks", "Host: x", unix_socket=str(path))[0] == 401
        login = f"Authorization: Basic {basic(USER, SECRET)}"
        assert said(0, "GET", "/tasks", "Host: x", login, unix_socket=str(path))[0] == 200
    finally:
        flower.child.end()


@pytest.mark.parametrize("by", COMMANDS)
@pytest.mark.parametrize("place", ["genqueue.toml", "missing/f.sock"])
def test_where_no_unix_socket_can_be_it_does_not_start(fleet, generators, tmp_path, place, by):
    done = Flower(tmp_path, fleet.redis.url, generators, by=by, FLOWER_UNIX_SOCKET=str(tmp_path / place)).run()
    assert done.returncode == ExitCode.CONFIG
    assert done.stderr.splitlines()[-1].startswith("genqueue: FLOWER_UNIX_SOCKET: cannot listen on ")


def test_by_celerys_own_command_it_is_the_same(fleet, tmp_path):
    flower = Flower(tmp_path, fleet.redis.url, {}, by=BY_CELERY).start()
    try:
        assert listeners(flower.port) == {"127.0.0.1"}
        assert flower.get("/tasks")[0] == 401
        assert "First token" in flower.get("/tasks", user=USER)[1]
    finally:
        flower.child.end()


@pytest.mark.parametrize("by", [pytest.param(BARE, id="celery-alone"), pytest.param(BY_A_PROGRAM, id="a-program")])
def test_without_our_file_the_app_brings_the_gate_along(fleet, tmp_path, by, ask, eventually):
    flower = Flower(tmp_path, fleet.redis.url, {}, by=by, FLOWER_BASIC_AUTH="").start()
    try:
        assert listeners(flower.port) == {"127.0.0.1"}
        for path in ("/", "/tasks", "/metrics", "/healthcheck"):
            assert said(flower.port, "GET", path, "Host: evil.example")[0] == 403
            assert said(flower.port, "GET", path, "Host: localhost", "Origin: http://evil.example")[0] == 403
            assert said(flower.port, "GET", path, f"Host: localhost:{flower.port}")[0] == 200
        generation = fleet.client.submit(ask(tokens=3))
        generation.result(timeout_s=10)
        page = eventually(lambda: "SUCCESS" in (found := flower.get(f"/task/{generation.id}")[1]) and found)
        assert "sha256" in page
        assert "generate.default" in flower.get("/broker")[1]
    finally:
        flower.child.end()


@pytest.mark.parametrize("by", [pytest.param(BARE, id="celery-alone"), pytest.param(BY_A_PROGRAM, id="a-program")])
def test_without_our_file_a_password_closes_it(fleet, tmp_path, by):
    flower = Flower(tmp_path, fleet.redis.url, {}, by=by).start()
    try:
        assert flower.get("/tasks")[0] == 401
        assert flower.get("/tasks", user=USER)[0] == 200
    finally:
        flower.child.end()


@pytest.mark.parametrize("by", COMMANDS[1:])
@pytest.mark.parametrize(("argument", "environ"), [((), {"FLOWER_ADDRESS": "0.0.0.0"}), (("--address=0.0.0.0",), {})])
def test_nor_does_that_start_open_where_others_reach_it(fleet, tmp_path, argument, environ, by):
    done = Flower(tmp_path, fleet.redis.url, {}, by=(*by, *argument), FLOWER_BASIC_AUTH="", **environ).run()
    assert done.returncode == ExitCode.CONFIG
    assert done.stderr.splitlines()[-1].startswith("genqueue: address 0.0.0.0: others can reach it")
    assert "Traceback" not in done.stderr


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
