"""What a server's headers say of its rate limits.

| who | names | resets as |
|---|---|---|
| OpenAI, Azure, Groq, xAI, Fireworks | x-ratelimit-{limit,remaining,reset}-{requests,tokens} | 6m0s, 12ms, seconds |
| Mistral | x-ratelimit-{limit,remaining}-{req,tokens}-minute | |
| Cerebras, DigitalOcean | x-ratelimit-...-tokens-minute, -tokens-per-minute, -requests-day | seconds, Unix time |
| Anthropic | anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset} | RFC 3339 |
| Together, OpenRouter | x-ratelimit-{limit,remaining,reset} | seconds, Unix milliseconds |

The last row says a second, a minute or a day without telling which: only that nothing remains is read from it. Groq
and xAI put a day's requests into the first: as a minute's, that is no constraint, and nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple


class Quota(NamedTuple):
    """One limit. Each is None where the server does not tell it, or tells what cannot be (Azure sends -1)."""

    limit: float | None = None
    """A minute."""
    remaining: float | None = None
    reset: float | None = None
    """Seconds until it is whole again."""


def _names(*patterns: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((p.format("limit"), p.format("remaining"), p.format("reset")) for p in patterns)


_REQUESTS = _names(
    "x-ratelimit-{}-requests",
    "x-ratelimit-{}-requests-minute",
    "x-ratelimit-{}-req-minute",
    "anthropic-ratelimit-requests-{}",
)
_TOKENS = _names(
    "x-ratelimit-{}-tokens",
    "x-ratelimit-{}-tokens-minute",
    "x-ratelimit-{}-tokens-per-minute",
    "anthropic-ratelimit-tokens-{}",
)
_NOTHING = Quota()
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def requests_quota(headers: Mapping[str, str]) -> Quota:
    """Of requests. `headers` have names in lower case."""
    found = _quota(headers, _REQUESTS)
    if found is _NOTHING and _number(headers.get("x-ratelimit-remaining")) == 0.0:
        return Quota(None, 0.0, _seconds(headers.get("x-ratelimit-reset"), headers))
    return found


def tokens_quota(headers: Mapping[str, str]) -> Quota:
    """Of tokens, those of the prompt and of the reply together."""
    return _quota(headers, _TOKENS)


def _quota(headers: Mapping[str, str], names: tuple[tuple[str, str, str], ...]) -> Quota:
    for limit_name, remaining_name, reset_name in names:
        limit, remaining = _number(headers.get(limit_name)), _number(headers.get(remaining_name))
        if limit or remaining is not None:
            return Quota(limit or None, remaining, _seconds(headers.get(reset_name), headers))
    return _NOTHING


def _number(text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value < float("inf") else None


def _seconds(text: str | None, headers: Mapping[str, str]) -> float | None:
    """A duration, a number of seconds, or a moment, which counts from the server's own clock: its `date` header."""
    text = (text or "").strip()
    number = _number(text)
    if number is not None and number < 1e9:
        return number
    if _DURATION.sub("", text) == "" and text:
        return sum(float(value) * _UNITS[unit] for value, unit in _DURATION.findall(text))
    moment = (number / 1000 if number > 1e11 else number) if number is not None else _moment(text)
    there = _moment(headers.get("date", ""))
    return max(0.0, moment - there) if moment is not None and there is not None else None


def _moment(text: str) -> float | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = parse(text)
        except (ValueError, IndexError, OverflowError):
            continue
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None
