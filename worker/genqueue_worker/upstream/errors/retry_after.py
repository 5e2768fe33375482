"""How long a server asks us to wait, in its ``Retry-After`` header (RFC 9110, sections 5.6.7 and 10.2.3).

Pure; the clock is an argument.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        f"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",  # IMF-fixdate
        f"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",  # RFC 850
        f"{_DAY} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",  # asctime
    )
)
_FARTHEST_YEARS = 50
"""A year of two digits is never further ahead."""


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds to wait; 0.0 if the date is over, None where the server says nothing that is readable.

    A date is held against the server's own, if it says that: its clock need not be right.

    Args:
        headers: of its answer, their names in lower case.
        now_s: epoch seconds.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]+", value):
        return float(value)
    until_s = http_date(value, now_s)
    if until_s is None:
        return None
    said_s = http_date(headers.get("date", "").strip(), now_s)
    return max(0.0, until_s - (now_s if said_s is None else said_s))


def http_date(value: str, now_s: float) -> float | None:
    """A date in any of HTTP's three forms, in epoch seconds; None if it is in none of them, or in no calendar."""
    date = next(filter(None, (form.fullmatch(value) for form in _FORMS)), None)
    if date is None:
        return None
    year = int(date["year"])
    if len(date["year"]) == 2:
        this_year = datetime.fromtimestamp(now_s, UTC).year
        year += this_year // 100 * 100
        year += 100 * ((year <= this_year - _FARTHEST_YEARS) - (year > this_year + _FARTHEST_YEARS))
    try:
        moment = datetime(
            year,
            1 + _MONTHS.index(date["month"]),
            int(date["day"]),
            int(date["hour"]),
            int(date["minute"]),
            min(59, int(date["second"])) if date["second"] == "60" else int(date["second"]),  # a leap second
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return moment.timestamp()
