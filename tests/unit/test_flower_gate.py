"""Who may start Flower how, and whose request it answers."""

import base64
import os

import pytest

from genqueue import ConfigError
from genqueue_worker.flower_gate import Caller, keep_private, refusal, shut

OAUTH = {
    "FLOWER_AUTH": "one@example.com|two@example.com",
    "FLOWER_AUTH_PROVIDER": "flower.views.auth.GoogleAuth2LoginHandler",
    "FLOWER_OAUTH2_KEY": "key",
    "FLOWER_OAUTH2_SECRET": "secret",
}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_this_host_alone_it_may_be_open(address):
    assert refusal({}, address) is None


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.5", "flower.internal"])
def test_where_others_reach_it_it_needs_a_password(address):
    refused = refusal({}, address)
    assert refused is not None
    assert (address or "every interface") in refused
    assert "FLOWER_BASIC_AUTH" in refused
    assert refusal({"FLOWER_BASIC_AUTH": ""}, address) == refused
    assert refusal({"FLOWER_BASIC_AUTH": "user:password"}, address) is None
    assert refusal({**OAUTH, "FLOWER_AUTH": ".*@example.com"}, address) is None


@pytest.mark.parametrize("value", ["user", "user:", ":password", "user:password,", "user:password,other"])
def test_a_password_without_a_user_or_a_user_without_a_password_is_refused(value):
    refused = refusal({"FLOWER_BASIC_AUTH": value}, "127.0.0.1")
    assert refused is not None
    assert "password," not in refused.replace("user:password, or", "")  # not the value


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("missing", OAUTH)
def test_a_login_elsewhere_needs_all_that_belongs_to_it(address, missing):
    refused = refusal({**OAUTH, missing: ""}, address)
    assert refused is not None
    assert missing in refused
    assert "secret" not in refused
    assert refusal(OAUTH, address) is None


@pytest.mark.parametrize(
    "pattern",
    [
        ".",
        ".*",
        ".+",
        "^.*$",
        "(.*)",
        ".*@.*",
        ".+@.+",
        "^",
        r"\S+@\S+",
        "one@example.com|",
        "one@example.com|.*",
        "*@x.com",
    ],
)
def test_a_login_that_everybody_has_is_none(pattern):
    refused = refusal({**OAUTH, "FLOWER_AUTH": pattern}, "127.0.0.1")
    assert refused is not None
    assert refused.startswith("FLOWER_AUTH: ")


@pytest.mark.parametrize("pattern", ["me@example.com", "a@x.com|b@y.com", ".*@example.com", "team-.*@example.com"])
def test_some_addresses_or_those_of_one_domain_may_log_in(pattern):
    assert refusal({**OAUTH, "FLOWER_AUTH": pattern}, "0.0.0.0") is None


@pytest.mark.parametrize(
    "value",
    [
        " : ",
        "user: ",
        " :password",
        "user:\t",
        "user:password, : ",
        "user:\xa0",
        "usér:password",
        "user:pässword",
        "user:\0",
        "user:password\n",
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_password_of_spaces_is_none_and_one_that_nobody_can_send_is_refused(value, address):
    refused = refusal({"FLOWER_BASIC_AUTH": value}, address)
    assert refused is not None
    assert refused.startswith("FLOWER_BASIC_AUTH: ")


def test_a_login_of_spaces_is_none():
    assert refusal({**OAUTH, "FLOWER_OAUTH2_SECRET": "  "}, "0.0.0.0") is not None
    assert refusal(dict.fromkeys(OAUTH, " "), "127.0.0.1") is not None


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_unix_socket_needs_a_password_whatever_the_address_is(address):
    refused = refusal({"FLOWER_UNIX_SOCKET": "/run/flower.sock"}, address)
    assert refused is not None
    assert refused.startswith("FLOWER_UNIX_SOCKET: ")
    assert refusal({"FLOWER_UNIX_SOCKET": "/run/flower.sock", "FLOWER_BASIC_AUTH": "a:b"}, address) is None
    assert refusal({"FLOWER_UNIX_SOCKET": "/run/flower.sock", **OAUTH}, address) is None


@pytest.mark.parametrize(
    "name", ["FLOWER_unix_socket", "FLOWER_Unix_Socket", "FLOWER_UNIX-SOCKET", "FLOWER_basic_auth", "FLOWER_Auth"]
)
def test_a_variable_that_flower_reads_by_another_spelling_is_refused(name):
    refused = refusal({name: "x"}, "127.0.0.1")
    assert refused is not None
    assert refused.startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["flower_basic_auth", "FLOWERS", "OTHER_flower", "FLOWER_URL_PREFIX"])
def test_what_flower_does_not_read_or_may_read_is_left_alone(name):
    assert refusal({name: "x"}, "127.0.0.1") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLOWER_DEBUG", "true"),
        ("FLOWER_DEBUG", "1"),
        ("FLOWER_DEBUG", "Yes"),
        ("FLOWER_LOGGING", "debug"),
        ("FLOWER_LOGGING", "DEBUG"),
        ("FLOWER_COOKIE_SECRET", "short"),
        ("FLOWER_COOKIE_SECRET", "s" * 31),
    ],
)
def test_what_hands_out_a_login_beside_it_is_refused(name, value):
    refused = refusal({**OAUTH, name: value}, "127.0.0.1")
    assert refused is not None
    assert refused.startswith(f"{name}: ")
    assert "short" not in refused


@pytest.mark.parametrize(
    ("name", "value"),
    [("FLOWER_DEBUG", "false"), ("FLOWER_DEBUG", "0"), ("FLOWER_LOGGING", "info"), ("FLOWER_COOKIE_SECRET", "s" * 32)],
)
def test_what_hands_out_none_is_not(name, value):
    assert refusal({**OAUTH, name: value}, "127.0.0.1") is None


# --- each request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:5555",
        "LocalHost:80",
        "127.0.0.1",
        "127.0.0.1:5555",
        "127.8.9.1",
        "[::1]:5555",
        "[::1]",
    ],
)
def test_without_a_password_it_answers_by_this_hosts_own_names(host):
    assert shut(Caller("GET", host), has_login=False) is None
    assert shut(Caller("POST", host, origin=f"http://{host}", site="same-origin"), has_login=False) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:5555",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example/localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "evil.example#localhost",
        "0.0.0.0:5555",
        "10.0.0.5",
        "[::]:5555",
        "[fe80::1]",
        "2130706433",
        "127.1",
        "0x7f.0.0.1",
        "localhost:",
        "localhost:port",
        "localhost:5555:5555",
        "localhost localhost",
        "127.0.0.1\x00",
        "[localhost]",
        "::1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_and_by_no_other_however_it_leads_here(host, method):
    status, words = shut(Caller(method, host), has_login=False)
    assert status == 403
    assert "FLOWER_BASIC_AUTH" in words


FRAME = {"site": "cross-site", "mode": "navigate", "dest": "iframe"}
LINK = {"site": "cross-site", "mode": "navigate", "dest": "document"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("POST", {"origin": "http://evil.example"}, id="another's-script"),
        pytest.param("GET", {"origin": "http://evil.example"}, id="another's-read"),
        pytest.param("OPTIONS", {"origin": "http://evil.example"}, id="preflight"),
        pytest.param("POST", {"origin": "null"}, id="of-a-sandbox"),
        pytest.param("POST", {"origin": "http://localhost"}, id="another-port"),
        pytest.param("POST", {"origin": "http://localhost:3000"}, id="another-server-of-this-host"),
        pytest.param("POST", {"origin": "http://localhost:5555.evil.example"}, id="alike"),
        pytest.param("POST", {"site": "cross-site"}, id="cross-site"),
        pytest.param("GET", {"site": "cross-site", "mode": "no-cors", "dest": "image"}, id="as-an-image"),
        pytest.param("GET", {"site": "same-site"}, id="same-site"),
        pytest.param("POST", LINK, id="a-form"),
        pytest.param("GET", {**LINK, "origin": "http://evil.example"}, id="a-link-with-an-origin"),
        pytest.param("GET", FRAME, id="a-frame"),
        pytest.param("GET", {"site": "whatever"}, id="unknown"),
    ],
)
def test_without_a_password_no_other_page_is_answered(method, headers):
    status, _ = shut(Caller(method, "localhost:5555", **headers), has_login=False)
    assert status == 403


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("POST", {}, id="a-program"),
        pytest.param("GET", {"site": "none", "mode": "navigate", "dest": "document"}, id="typed"),
        pytest.param("GET", LINK, id="a-link"),
        pytest.param("GET", {"site": "same-origin", "mode": "cors"}, id="its-own-script"),
        pytest.param("POST", {"site": "same-origin", "origin": "http://localhost:5555"}, id="its-own-button"),
        pytest.param("POST", {"origin": "http://LOCALHOST:5555"}, id="of-an-older-browser"),
    ],
)
def test_its_own_pages_links_and_programs_are(method, headers):
    assert shut(Caller(method, "localhost:5555", **headers), has_login=False) is None


def test_with_a_login_that_decides():
    stranger = Caller("POST", "evil.example", origin="http://evil.example", site="cross-site")
    assert shut(stranger, has_login=True) is None


def basic(credentials):
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize("credentials", ["usér:password", "user:pässword", "user:\u202e"])
def test_a_user_or_password_that_is_not_ascii_is_nobodys(credentials):
    status, _ = shut(Caller("GET", "h", authorization=basic(credentials)), has_login=True)
    assert status == 401


@pytest.mark.parametrize("authorization", ["", basic("user:password"), "Basic", "Basic ?", "Basic é", "Bearer é", "x"])
def test_others_are_flowers_to_judge(authorization):
    assert shut(Caller("GET", "h", authorization=authorization), has_login=True) is None


# --- its files -----------------------------------------------------------------------------------


@pytest.fixture
def umask():
    earlier = os.umask(0o022)
    yield
    os.umask(earlier)


def rights(path):
    return path.stat().st_mode & 0o777


def test_files_and_folders_that_are_not_there_yet_are_its_users_alone(tmp_path, umask):
    db = tmp_path / "state" / "genqueue" / "flower"
    keep_private(db, is_own_folder=True)
    (db.parent / "flower.dat").write_text("")
    assert [rights(path) for path in (tmp_path / "state", db.parent, db.parent / "flower.dat")] == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("ending", ["", ".db", ".dat", ".dir", ".bak", ".tmp.dat", ".dat.corrupt"])
def test_those_that_are_there_become_so(tmp_path, umask, ending):
    (tmp_path / "own").mkdir(mode=0o755)
    db, other = tmp_path / "own" / "flower", tmp_path / "own" / "flower-notes.txt"
    kept = db.with_name(f"flower{ending}")
    for path in (kept, other):
        path.write_text("")
        path.chmod(0o664)
    keep_private(db, is_own_folder=False)
    assert (rights(db.parent), rights(kept), rights(other)) == (0o755, 0o600, 0o664)
    keep_private(db, is_own_folder=True)
    assert rights(db.parent) == 0o700


def test_a_database_that_others_could_have_written_is_not_unpickled(tmp_path, umask):
    (tmp_path / "flower.dat").write_text("")
    (tmp_path / "flower.dat").chmod(0o666)
    with pytest.raises(ConfigError, match="others may have written"):
        keep_private(tmp_path / "flower", is_own_folder=False)
    (tmp_path / "flower.dat").unlink()
    (tmp_path / "flower.dat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="others may have written"):
        keep_private(tmp_path / "flower", is_own_folder=False)
