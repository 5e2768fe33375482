"""Retry-After in seconds and as each of HTTP's dates."""

import pytest

from genqueue_worker.upstream.errors.retry_after import http_date, retry_after_s

NOW_S = 784111777.0  # the moment of RFC 9110's examples: 1994-11-06 08:49:37


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("007", 7.0),
        ("9" * 5000, float("inf")),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
        ("Sun Nov  6 08:50:07 1994", 30.0),
        ("Sun Nov 06 08:50:07 1994", 30.0),
        ("Sat, 31 Dec 1994 23:59:60 GMT", 4806622.0),  # a leap second
        ("Fri, 31 Dec 1999 23:59:59 GMT", 162573022.0),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Sunday, 06-Nov-44 08:49:37 GMT", 1577923200.0),  # 2044: fifty years ahead at the most
        ("Monday, 06-Nov-45 08:49:37 GMT", 0.0),  # 1945
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("+5", None),
        ("5 s", None),
        ("٣", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37", None),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 25:00:00 GMT", None),
        ("Sun, 06 Nov 1994 08:49:61 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("1994-11-06T08:50:07Z", None),
        ("Sun, 06 Nov 1994 08:50:07 GMT, 7", None),
    ],
)
def test_a_server_says_how_long_to_wait(value, expected):
    assert retry_after_s({"retry-after": value}, NOW_S) == expected


def test_without_the_header_it_says_nothing():
    assert retry_after_s({"date": "Sun, 06 Nov 1994 08:49:37 GMT"}, NOW_S) is None


@pytest.mark.parametrize(("date", "expected"), [("Sun, 06 Nov 1994 08:49:37 GMT", 30.0), ("broken", 3630.0)])
def test_a_date_is_held_against_the_servers_own(date, expected):
    headers = {"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT", "date": date}
    assert retry_after_s(headers, NOW_S - 3600) == expected


def test_the_three_forms_of_one_moment_are_one():
    forms = ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
    assert [http_date(form, NOW_S) for form in forms] == [NOW_S] * 3
