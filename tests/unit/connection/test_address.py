"""What a ``redis_url`` may be, and what each part of it becomes."""

import pytest

from genqueue.connection.address import RedisAddress, read_address

SECRET = "canary-0007"


@pytest.mark.parametrize(
    ("url", "nodes", "master", "database"),
    [
        pytest.param("redis://h", (("h", 6379),), None, 0, id="host"),
        pytest.param("redis://h:1/2", (("h", 1),), None, 2, id="database"),
        pytest.param("redis://h/", (("h", 6379),), None, 0, id="slash"),
        pytest.param("rediss://[::1]:1/2", (("::1", 1),), None, 2, id="ipv6"),
        pytest.param("redis+sentinel://h/m", (("h", 26379),), "m", 0, id="sentinel"),
        pytest.param(
            "redis+sentinel://a:1,b,[::1]:3/m/4", (("a", 1), ("b", 26379), ("::1", 3)), "m", 4, id="sentinels"
        ),
        pytest.param("rediss+sentinel://u:p%40@a,b/our%20m/", (("a", 26379), ("b", 26379)), "our m", 0, id="quoted"),
    ],
)
def test_an_address_says_where_redis_is(url, nodes, master, database):
    address = read_address(url)
    assert (address.nodes, address.master, address.database) == (nodes, master, database)
    assert (address.tls is not None) == url.startswith("rediss")


def test_credentials_of_redis_and_of_its_sentinels_are_two_things():
    address = read_address("redis+sentinel://us%2Fer:p%40ss@h/m?sentinel_username=su&sentinel_password=s%26p")
    assert (address.username, address.password) == ("us/er", "p@ss")
    assert (address.sentinel_username, address.sentinel_password) == ("su", "s&p")
    assert address.url("sentinel") == "sentinel://us%2Fer:p%40ss@h:26379/0"


@pytest.mark.parametrize(
    ("query", "tls"),
    [
        pytest.param("", {"ssl_cert_reqs": "required", "ssl_check_hostname": True}, id="safe-by-default"),
        pytest.param(
            "ssl_cert_reqs=CERT_REQUIRED", {"ssl_cert_reqs": "required", "ssl_check_hostname": True}, id="celery"
        ),
        pytest.param("ssl_cert_reqs=none", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}, id="none"),
        pytest.param(
            "ssl_ca_certs=%2Fca.pem&ssl_check_hostname=False",
            {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "required", "ssl_check_hostname": False},
            id="ca",
        ),
        pytest.param(
            "ssl_certfile=c&ssl_keyfile=k",
            {"ssl_certfile": "c", "ssl_keyfile": "k", "ssl_cert_reqs": "required", "ssl_check_hostname": True},
            id="client-certificate",
        ),
    ],
)
def test_certificates_are_checked_unless_somebody_says_otherwise(query, tls):
    assert read_address(f"rediss://h/0?{query}").tls == tls


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("http://h", "must be a redis://", id="scheme"),
        pytest.param("h:6379", "must be a redis://", id="no-scheme"),
        pytest.param("redis://", "with a host", id="no-host"),
        pytest.param("redis://a,b/0", "several are Sentinels", id="two-hosts"),
        pytest.param("redis://h/x", "the number of a database", id="database"),
        pytest.param("redis+sentinel://a,b", "the name of the Sentinels' master", id="no-master"),
        pytest.param("redis+sentinel://a,b/m/x", "the name of the Sentinels' master", id="sentinel-database"),
        pytest.param("redis+sentinel://a,b:99999/m", "the port must be a number", id="port"),
        pytest.param("redis+sentinel://a,/m", "with a host", id="comma"),
        pytest.param(f"redis://h/0?sentinel_password={SECRET}", r"are for redis\+sentinel://", id="sentinel-password"),
        pytest.param("redis://h/0?ssl_ca_certs=x", "ssl_ca_certs: for rediss:// addresses only", id="tls-without-tls"),
        pytest.param(f"rediss://h/0?ssl_password={SECRET}", "ssl_password: no TLS option; known: ssl_ca", id="unknown"),
        pytest.param(f"redis://h/0?password={SECRET}", "password: no option of an address; known: ssl_", id="password"),
        pytest.param(f"redis://u:12?{SECRET}@h/0", "something: no option of an address", id="question-in-a-password"),
        pytest.param(f"redis://u:12?{SECRET}=@h/0", "something: no option of an address", id="and-an-equals-sign"),
        pytest.param(f"redis://u:12#{SECRET}@h/0", "in a password it is %23", id="number-sign-in-a-password"),
        pytest.param(f"redis://u:12/{SECRET}@h/0", "the number of a database", id="slash-in-a-password"),
        pytest.param("redis://h/0?db=1&client_name=x", "client_name, db: no option of an address", id="redis-pys"),
        pytest.param("rediss://h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of", id="cert-reqs"),
        pytest.param("rediss://h/0?ssl_check_hostname=1", "ssl_check_hostname must be", id="check-hostname"),
        pytest.param("rediss://h/0?ssl_certfile=x", "go together", id="half-a-certificate"),
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(url, words):
    with pytest.raises(ValueError, match=words) as refused:
        read_address(url)
    assert SECRET not in str(refused.value)


def test_no_secret_is_shown():
    address: RedisAddress = read_address(f"redis+sentinel://u:{SECRET}@h/m?sentinel_password={SECRET}")
    assert SECRET not in repr(address) + address.name
