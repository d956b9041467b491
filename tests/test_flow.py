"""Windows, buckets, health and gauges against simulated servers: the servers' own figures are the answers."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from weaverant.engines.http.endpoint import retry_after
from weaverant.engines.http.flow.bucket import Bucket, RateLimits
from weaverant.engines.http.flow.gauges import Gauges, parse_gauges
from weaverant.engines.http.flow.health import Health
from weaverant.engines.http.flow.quota import Quota, requests_quota, tokens_quota
from weaverant.engines.http.flow.window import Window


class Server:
    """Works on up to `slots` requests at once, in order of arrival; the rest queue, or are rejected.

    `latency` is the mean time of a request alone, `sigma` its lognormal spread. With `batch`, all become slower by
    that share for each that is worked on.
    """

    def __init__(self, slots: int, latency: float, sigma: float, seed: int, batch: float = 0.0, reject: bool = False):
        self.slots, self.latency, self.sigma, self.batch, self.reject = slots, latency, sigma, batch, reject
        self.slow = 1.0
        self.queue: deque[float] = deque()
        self.jobs: list[tuple[float, int, float]] = []
        self.done_work = self.most_work = 0.0
        self._random = random.Random(seed)
        self._served = self._clock = self._at = 0.0
        self._count = 0

    def pass_time(self, now: float) -> None:
        seconds, self._at = now - self._at, now
        self._clock += self._speed(len(self.jobs)) * seconds
        self.done_work += self._speed(len(self.jobs)) * seconds * len(self.jobs)
        self.most_work += self._speed(self.slots) * seconds * self.slots

    def next_end(self) -> float:
        return self._at + (self.jobs[0][0] - self._clock) / self._speed(len(self.jobs)) if self.jobs else math.inf

    def send(self, now: float) -> bool:
        self.pass_time(now)
        if len(self.jobs) < self.slots:
            self._start(now)
        elif not self.reject:
            self.queue.append(now)
        else:
            return False
        return True

    def end_one(self, now: float) -> float:
        self.pass_time(now)
        began = heapq.heappop(self.jobs)[2]
        while self.queue and len(self.jobs) < self.slots:
            self._start(self.queue.popleft())
        return began

    def _start(self, began: float) -> None:
        self._count += 1
        work = self.latency * math.exp(self._random.gauss(0, self.sigma) - self.sigma**2 / 2)
        heapq.heappush(self.jobs, (self._clock + work, self._count, began))

    def _speed(self, running: int) -> float:
        return 1.0 / (1.0 + self.batch * running) / self.slow


@dataclass
class Seen:
    """What a client saw of a server from `settle` on; requests in flight and work are shares of what fills it."""

    window: Window
    in_flight: float = 0.0
    busy: float = 0.0
    replies: int = 0
    rejected: int = 0
    sizes: list[tuple[float, int]] = field(default_factory=list)

    @property
    def rejects(self) -> float:
        return self.rejected / (self.rejected + self.replies)

    def first(self, size: int) -> float:
        return next((now for now, found in self.sizes if found >= size), math.inf)


def drive(
    server: Server,
    seconds: float,
    settle: float = 0.0,
    most: int = 2000,
    gauges: float = math.inf,
    demand: Callable[[float], float] = lambda now: math.inf,
    changes: tuple[tuple[float, float], ...] = (),
    failing: float = 0.0,
    first: int = 0,
    refusing: float = 0.0,
) -> Seen:
    """A client with `demand(now)` requests at hand, reading gauges every so often; rejections take 2 ms, that share of
    requests is rejected for no reason, and the server's slowness becomes, at some times, another."""
    seen = Seen(window := Window(most, 0.0, first))
    rejections: deque[tuple[float, float, int]] = deque()
    among: dict[float, deque[int]] = {}
    news = deque((*changes, (math.inf, 1.0)))
    dice = random.Random(1)
    now, area, at_settle, next_gauge = 0.0, 0.0, (0.0, 0.0), gauges
    while now < seconds:
        ends, rejected = server.next_end(), rejections[0][0] if rejections else math.inf
        then = min(ends, rejected, next_gauge, news[0][0], now + server.latency)
        if now < settle <= then:
            server.pass_time(then)
            at_settle, area, seen.replies, seen.rejected = (server.done_work, server.most_work), 0.0, 0, 0
        area, now = area + window.in_flight * (then - now), then
        if now == rejected:
            _, began, level = rejections.popleft()
            window.end(now, began, "limited", level)
            seen.rejected += 1
        elif now == ends:
            began = server.end_one(now)
            window.end(now, began, "failed" if dice.random() < failing else "reply", among[began].popleft())
            seen.replies += 1
        elif now == next_gauge:
            window.gauge(now, Gauges(len(server.jobs), len(server.queue)))
            next_gauge += gauges
        elif now == news[0][0]:
            server.pass_time(now)
            server.slow = news.popleft()[1]
        while window.room and window.in_flight < demand(now):
            level = window.begin(now)
            if (refusing and dice.random() < refusing) or not server.send(now):
                rejections.append((now + 0.002, now, level))
            else:
                among.setdefault(now, deque()).append(level)
        seen.sizes.append((now, window.size))
    server.pass_time(now)
    seen.in_flight = area / (now - settle) / server.slots
    seen.busy = (server.done_work - at_settle[0]) / (server.most_work - at_settle[1])
    return seen


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize(("slots", "latency"), [(1, 20.0), (4, 1.0), (32, 0.05), (32, 5.0), (256, 1.0)])
def test_a_silent_queue_is_kept_short_and_never_runs_dry(slots: int, latency: float, sigma: float):
    rounds = 6000 / slots + 100
    settle = rounds * latency + 20.0
    seen = drive(Server(slots, latency, sigma, seed=1), 2 * settle, settle)
    assert 1.0 <= seen.in_flight <= 1.5
    assert seen.busy >= 0.97


def test_it_settles_within_thirty_latencies_where_replies_are_alike_and_sixty_where_not():
    for sigma, latencies in ((0.3, 30), (1.0, 60)):
        for seed in range(3):
            server = Server(64, 1.0, sigma, seed)
            assert drive(server, 100.0).first(60) < latencies


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("slots", [1, 4, 32, 256])
def test_the_number_at_which_a_server_rejects_is_found_and_kept_to(slots: int, sigma: float):
    rounds = 10_000 / slots + 200
    seen = drive(Server(slots, 1.0, sigma, seed=2, reject=True), rounds, rounds / 4)
    assert seen.busy >= 0.95
    assert seen.rejects < 0.01


class Shut(Server):
    """Rejects everything for 30 s, as it starts and once more, however little it has to do."""

    def send(self, now: float) -> bool:
        return False if now < 30.0 or 300.0 <= now < 330.0 else super().send(now)


@pytest.mark.parametrize("reject", [False, True])
def test_a_time_in_which_all_is_rejected_is_forgotten(reject: bool):
    seen = drive(Shut(64, 1.0, 0.5, seed=3, reject=reject), 400.0)
    assert min(now for now, size in seen.sizes if now >= 30.0 and size >= 60) < 60.0
    assert min(now for now, size in seen.sizes if now >= 330.0 and size >= 30) < 340.0


@pytest.mark.parametrize("latency", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("slots", [1, 4, 32, 256])
def test_a_server_that_tells_its_queue_is_filled_just_so(slots: int, latency: float):
    seconds = 20 + 40 * latency
    seen = drive(Server(slots, latency, 0.7, seed=3), 2 * seconds, seconds, gauges=1.0)
    assert 1.0 <= seen.in_flight <= 1.25
    assert seen.busy >= 0.98


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_batches_grow_while_throughput_does(sigma: float):
    """Latency triples with the batch: what looks only for waiting would stay small."""
    seen = drive(Server(128, 1.0, sigma, seed=4, batch=2 / 128), 900.0, 300.0)
    assert seen.in_flight <= 1.5
    assert seen.busy >= 0.93


class Shuffled(Server):
    """Takes any of those that wait, so that some wait for ever and most not at all."""

    def end_one(self, now: float) -> float:
        self.queue.rotate(self._random.randrange(len(self.queue) or 1))
        return super().end_one(now)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_a_queue_in_no_order_does_not_run_away(sigma: float):
    seen = drive(Shuffled(32, 1.0, sigma, seed=1), 600.0, 300.0)
    assert 1.0 <= seen.in_flight <= 3.5  # of 62 that are allowed
    assert seen.busy >= 0.96


def test_an_api_without_limit_gets_all_there_is():
    for sigma in (0.0, 1.0):
        seen = drive(Server(10**6, 2.0, sigma, seed=5), 120.0, most=500)
        assert seen.first(500) < 40 * 2.0
        assert max(size for _, size in seen.sizes) == 500


def test_one_that_begins_at_the_known_number_fills_the_server_at_once():
    window = Window(2000, 0.0, 300)
    assert window.size == 300 and Window(200, 0.0, 300).size == 200
    seen = drive(Server(256, 5.0, 0.3, seed=2), 60.0, first=300)
    assert seen.busy > 0.9 and seen.in_flight < 2.0
    assert drive(Server(256, 5.0, 0.3, seed=2), 60.0).busy < 0.5


@pytest.mark.parametrize("slots", [4, 64])
def test_a_server_that_slows_down_tenfold_keeps_its_share_and_gets_it_back(slots: int):
    rounds = 4000 / slots + 50
    changes = ((rounds, 10.0), (11 * rounds, 1.0))
    seen = drive(Server(slots, 1.0, 0.5, seed=6), 13 * rounds, 1.2 * rounds, changes=changes)
    assert seen.busy >= 0.95
    assert seen.in_flight <= 1.6


def test_a_client_with_little_to_do_keeps_the_window_it_found():
    def demand(now: float) -> float:
        return 5 if 150 < now < 1000 else math.inf

    seen = drive(Server(32, 1.0, 0.5, seed=7), 1100.0, 1005.0, demand=demand)
    meanwhile = [size for now, size in seen.sizes if 200 < now < 1000]
    assert min(meanwhile) >= 0.9 * 32 and max(meanwhile) <= 1.6 * 32
    assert seen.busy >= 0.95


@pytest.mark.parametrize("few", [3, 6, 12, 100])
def test_a_client_with_little_to_do_from_the_start_never_waits_for_a_place(few: int):
    seen = drive(Server(10**6, 1.0, 0.3, seed=7), 200.0, demand=lambda now: few)
    assert min(size for now, size in seen.sizes if now > 50.0) >= few


def test_some_failures_do_not_shrink_the_window_and_many_do():
    assert drive(Server(32, 1.0, 0.5, seed=8), 400.0, 150.0, failing=0.05).busy >= 0.95
    window = Window(100, 0.0)
    for now in range(200):
        if window.room:
            window.begin(float(now))
            window.end(now + 0.5, float(now), "failed")
    assert window.size == 1 and window.in_flight == 0


def test_cancelled_and_refused_requests_leave_no_trace():
    window = Window(10, 0.0)
    for now in range(1000):
        window.begin(float(now))
        window.end(now + 0.5, float(now), "dropped" if now % 2 else "refused")
    assert window.in_flight == 0 and window.size >= 1 and window.seconds() == 0.0
    window.begin(2000.0)
    window.end(2003.0, 2000.0, "reply")
    assert window.seconds() == 3.0


def test_gauges_that_fall_silent_are_forgotten():
    window = Window(100, 0.0)
    window.gauge(1.0, Gauges(0, 0))
    for now in range(2, 300):
        while window.room:
            window.begin(now + 0.0)
        for _ in range(window.in_flight):
            window.end(now + 0.9, now + 0.0, "reply")
    assert window.size > 50


class FixedWindow:
    """A server's way to count: anew each minute, from some second on."""

    def __init__(self, limit: float, offset: float) -> None:
        self.limit, self.offset, self.minute, self.used = limit, offset, -1.0, 0.0

    def admit(self, now: float, amount: float) -> bool:
        minute = (now + self.offset) // 60.0
        if minute != self.minute:
            self.minute, self.used = minute, 0.0
        if self.used + amount > self.limit:
            return False
        self.used += amount
        return True


class SlidingLog:
    """Over the last 60 s."""

    def __init__(self, limit: float, offset: float) -> None:
        self.limit, self.used = limit, 0.0
        self.log: deque[tuple[float, float]] = deque()

    def admit(self, now: float, amount: float) -> bool:
        while self.log and self.log[0][0] <= now - 60.0:
            self.used -= self.log.popleft()[1]
        if self.used + amount > self.limit:
            return False
        self.used += amount
        self.log.append((now, amount))
        return True


class TokenBucket:
    """A bucket of a minute's worth, refilled steadily."""

    def __init__(self, limit: float, offset: float) -> None:
        self.limit = self.level = limit
        self.at = 0.0

    def admit(self, now: float, amount: float) -> bool:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60.0)
        self.at = now
        if self.level < amount:
            return False
        self.level -= amount
        return True


def sent(limits: RateLimits, seconds: float, tokens: Callable[[], float], delay: Callable[[], float]):
    """Requests as they arrive at a server, of a client that always has more: times, and tokens."""
    now, amount = 0.0, tokens()
    arrivals: list[tuple[float, float]] = []
    while now < seconds:
        wait = limits.wait(amount, now)
        if wait > 0.0:
            now += wait
            continue
        limits.take(amount, now)
        arrivals.append((now + delay(), amount))
        amount = tokens()
    return sorted(arrivals)


@pytest.mark.parametrize("server", [FixedWindow, SlidingLog, TokenBucket])
@pytest.mark.parametrize("tokens", [(50.0,), (100.0,), (400.0,), (20.0, 20.0, 20.0, 500.0)])
def test_limits_are_used_and_kept_however_the_server_counts(server: type[SlidingLog], tokens: tuple[float, ...]):
    for seed in range(3):
        dice = random.Random(seed)
        requests, spent = server(600, dice.uniform(0, 60)), server(60_000, dice.uniform(0, 60))
        arrivals = sent(RateLimits(600, 60_000, 0.0), 900.0, lambda: dice.choice(tokens), lambda: dice.uniform(0, 0.2))  # noqa: B023
        admitted = [amount for now, amount in arrivals if requests.admit(now, 1.0) and spent.admit(now, amount)]
        assert len(admitted) >= 0.99 * len(arrivals)
        assert max(len(admitted) / (600 * 15), sum(admitted) / (60_000 * 15)) >= 0.95


@pytest.mark.parametrize("rpm", [3, 60, 10_000])
def test_requests_are_spread_over_the_minute(rpm: int):
    arrivals = [now for now, _ in sent(RateLimits(rpm, 0, 0.0), 180.0, lambda: 1.0, lambda: 0.0)]
    assert len(arrivals) >= 0.95 * 3 * rpm
    in_a_second = max(sum(start <= now < start + 1.0 for now in arrivals) for start in arrivals[:: max(1, rpm // 20)])
    assert in_a_second <= max(1, 2.0 * rpm / 60.0 + 1)


def test_a_request_larger_than_the_limit_goes_alone():
    bucket = Bucket(1000.0, 0.0)
    assert bucket.wait(5000.0, 0.0) == 0.0
    bucket.take(5000.0, 0.0)
    assert bucket.wait(1.0, 60.0) > 100.0


def test_settling_owes_what_was_too_little_and_returns_nothing():
    bucket = Bucket(6000.0, 0.0)
    bucket.take(98.0, 0.0)
    before = bucket.wait(98.0, 0.0)
    bucket.settle(98.0, 10.0, 0.0)
    assert bucket.wait(98.0, 0.0) == before
    bucket.settle(98.0, 98.0 + 980.0, 0.0)
    assert bucket.wait(98.0, 0.0) == pytest.approx(before + 10.0)


def test_a_pause_until_a_moment_goes_by_the_servers_clock():
    moment, wrong = "Sat, 21 Nov 2026 12:00:07 GMT", "Sat, 21 Nov 2026 12:00:00 GMT"
    assert retry_after({"retry-after": moment, "date": wrong}) == 7.0
    assert retry_after({"retry-after": moment, "date": "yesterday"}) is None
    assert retry_after({"retry-after": " 2.5 "}) == 2.5 and retry_after({}) is None


def test_an_announced_pause_is_kept_and_never_shortened():
    bucket = Bucket(6000.0, 0.0)
    bucket.empty_until(30.0)
    bucket.empty_until(10.0)
    assert bucket.wait(1.0, 0.0) == 30.0
    assert bucket.wait(1.0, 30.0) == 0.0


def test_without_limits_nothing_waits_until_headers_tell_one():
    limits = RateLimits(0, 0, 0.0)
    for _ in range(10_000):
        limits.take(1000.0, 0.0)
    assert limits.wait(1000.0, 0.0) == 0.0
    limits.learn({"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "-1"}, 0.0)
    limits.take(1000.0, 0.0)
    assert limits.wait(1000.0, 0.0) == pytest.approx(60 / 60 / 0.98)


def test_nothing_is_sent_where_nothing_remains_of_a_limit_that_is_not_told():
    limits = RateLimits(0, 0, 0.0)
    limits.learn({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "20"}, 100.0)
    assert limits.wait(500.0, 105.0) == 15.0 and limits.wait(500.0, 120.0) == 0.0
    for _ in range(1_000):
        limits.take(500.0, 120.0)
    assert limits.wait(500.0, 120.0) == 0.0, "there is no limit a minute"
    limits.learn({"x-ratelimit-limit-requests": "60"}, 121.0)
    limits.take(500.0, 121.0)
    limits.take(500.0, 121.0)
    assert limits.wait(500.0, 121.0) > 0.5

    silent = RateLimits(0, 0, 0.0)
    silent.learn({"x-ratelimit-remaining": "0"}, 100.0)
    assert silent.wait(500.0, 100.0) == 0.0


def test_what_the_user_said_counts_and_not_the_headers():
    limits = RateLimits(600, 0, 0.0)
    limits.learn({"x-ratelimit-limit-requests": "6"}, 0.0)
    for _ in range(9):
        limits.take(1.0, 0.0)
    assert limits.wait(1.0, 0.0) < 1.0


def test_where_nothing_remains_nothing_is_sent_until_the_window_ends():
    limits = RateLimits(0, 0, 0.0)
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "0"}
    limits.learn({**headers, "x-ratelimit-reset-requests": "23s"}, 100.0)  # a window: a bucket would need a minute
    assert limits.wait(1.0, 100.0) == pytest.approx(23.0)
    refilling = RateLimits(0, 0, 0.0)
    refilling.learn({**headers, "x-ratelimit-reset-requests": "60s"}, 100.0)
    assert refilling.wait(1.0, 100.0) == pytest.approx(1.0)


def test_a_server_that_counts_fewer_tokens_than_estimated_is_given_more():
    """It counts the 100 tokens of each reply; the client knows only that each could be 1,000."""
    limits = RateLimits(0, 60_000, 0.0)
    used = TokenBucket(60_000, 0.0)
    now, rejected, counts = 0.0, 0, [0, 0]
    while now < 3000.0:
        wait = limits.wait(1000.0, now)
        if wait > 0.0:
            now += wait
            continue
        limits.take(1000.0, now)
        rejected += not used.admit(now, 100.0)
        counts[now > 1500.0] += 1
        limits.settle(1000.0, 100.0, now)
        limits.learn({"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": f"{used.level:.0f}"}, now)
    assert counts[1] > 5 * 60 * 25  # of 60 a minute that estimates alone would give
    assert rejected < 0.01 * sum(counts)


@pytest.mark.parametrize(
    ("headers", "requests", "tokens"),
    [
        (  # OpenAI
            {
                "x-ratelimit-limit-requests": "5000",
                "x-ratelimit-remaining-requests": "4999",
                "x-ratelimit-reset-requests": "12ms",
                "x-ratelimit-limit-tokens": "160000",
                "x-ratelimit-remaining-tokens": "159976",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            Quota(5000, 4999, 0.012),
            Quota(160000, 159976, 360.0),
        ),
        (  # Groq
            {
                "x-ratelimit-limit-tokens": "18000",
                "x-ratelimit-remaining-tokens": "17997",
                "x-ratelimit-reset-tokens": "7.66s",
                "x-ratelimit-remaining-requests": "14370",
                "x-ratelimit-reset-requests": "2m59.56s",
            },
            Quota(None, 14370, 179.56),
            Quota(18000, 17997, 7.66),
        ),
        (  # Mistral
            {"x-ratelimit-limit-req-minute": "50", "x-ratelimit-remaining-tokens-minute": "47300"},
            Quota(50, None, None),
            Quota(None, 47300, None),
        ),
        (  # Cerebras: a day's requests are no pace
            {"x-ratelimit-limit-requests-day": "1000", "x-ratelimit-reset-tokens-minute": "26.5",
             "x-ratelimit-limit-tokens-minute": "60000", "x-ratelimit-remaining-tokens-minute": "50"},
            Quota(),
            Quota(60000, 50, 26.5),
        ),
        (  # Anthropic
            {
                "date": "Thu, 21 Aug 2025 12:40:50 GMT",
                "anthropic-ratelimit-requests-limit": "1000",
                "anthropic-ratelimit-requests-remaining": "999",
                "anthropic-ratelimit-requests-reset": "2025-08-21T12:40:59Z",
                "anthropic-ratelimit-tokens-limit": "96000",
                "anthropic-ratelimit-tokens-remaining": "96000",
            },
            Quota(1000, 999, 9.0),
            Quota(96000, 96000, None),
        ),
        (  # OpenRouter, when it refuses
            {
                "date": "Thu, 21 Aug 2025 12:40:50 GMT",
                "x-ratelimit-limit": "20",
                "x-ratelimit-remaining": "0",
                "x-ratelimit-reset": "1755780060000",
            },
            Quota(None, 0, 10.0),
            Quota(),
        ),
        (  # Azure, when it does not know; and rubbish
            {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1", "x-ratelimit-limit-requests": "nan"},
            Quota(),
            Quota(),
        ),
        ({"x-ratelimit-limit-requests": "0", "x-ratelimit-reset-requests": "soon"}, Quota(), Quota()),
    ],
)  # fmt: skip
def test_headers_of_many_servers_are_understood(headers: dict[str, str], requests: Quota, tokens: Quota):
    assert requests_quota(headers) == requests
    assert tokens_quota(headers) == tokens


def fail(health: Health, times: int, now: float) -> None:
    for _ in range(times):
        health.failed(now, health.begin())


def test_five_failures_in_a_row_put_a_replica_out_and_one_reply_brings_it_back():
    health = Health(0.0)
    fail(health, 4, 0.0)
    assert health.wait(0.0) == 0.0 and health.describe(0.0) == "" and not health.answered
    fail(health, 1, 0.0)
    assert health.wait(0.0) == 1.0
    assert health.describe(0.0) == "out: 5 failures, next try in 1 s"
    health.begin()
    assert health.wait(1.5) == math.inf
    assert health.describe(1.5) == "out: 5 failures, being tried now"
    health.reply(2.0)
    assert health.answered and health.wait(2.0) == 0.0 and health.describe(2.0) == ""
    fail(health, 4, 3.0)
    assert health.wait(3.0) == 0.0


def test_probes_become_rarer_up_to_half_a_minute():
    health, now, gaps = Health(0.0), 0.0, []
    fail(health, 5, now)
    for _ in range(7):
        gaps.append(health.wait(now))
        now += gaps[-1]
        fail(health, 1, now)
    assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_more_than_half_of_the_last_ones_failing_puts_it_out():
    health = Health(0.0)
    for _ in range(5):  # ten outcomes, half of them good
        fail(health, 1, 0.0)
        health.reply(0.0)
    assert health.wait(0.0) == 0.0
    fail(health, 1, 0.0)
    assert health.wait(0.0) == 1.0


def test_requests_in_flight_when_a_replica_went_out_say_nothing_of_its_probes():
    health = Health(0.0)
    sent = [health.begin() for _ in range(100)]
    for probe in sent[:98]:
        health.failed(0.5, probe)
    assert health.wait(0.5) == 1.0
    probe = health.begin()
    health.failed(1.6, sent[98])
    health.dropped(sent[99])
    assert health.wait(1.6) == math.inf, "one probe at a time"
    health.failed(2.0, probe)
    assert health.wait(2.0) == 2.0


def test_a_cancelled_probe_makes_way_for_another():
    health = Health(0.0)
    fail(health, 5, 0.0)
    health.dropped(health.begin())
    assert health.wait(1.1) == 0.0


def test_a_pause_is_waited_out_and_shows():
    health = Health(0.0)
    health.pause(0.0, 12.0, "rate limit")
    health.pause(1.0, 2.0, "another")
    assert health.wait(2.0) == 10.0
    assert health.describe(0.5) == "paused 12 s (rate limit)"
    assert health.wait(12.0) == 0.0 and health.describe(12.0) == ""


def test_a_replica_that_was_out_and_asks_for_a_pause_is_up_after_it():
    health = Health(0.0)
    fail(health, 5, 0.0)
    health.begin()
    health.pause(1.2, 3.0, "rate limit")
    assert health.wait(1.2) == pytest.approx(3.0)
    health.begin()
    assert health.wait(4.2) == 0.0


@pytest.mark.parametrize(
    ("page", "gauges"),
    [
        (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{engine="0",model_name="org/model"} 3.0\n'
            'vllm:num_requests_running{engine="1",model_name="org/model"} 2.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="a } b"} 7.0\n'
            'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0\n'
            'vllm:kv_cache_usage_perc{engine="0"} 0.42\n'
            'vllm:kv_cache_usage_perc{engine="1"} 0.5\n',
            Gauges(5.0, 7.0, 0.5),
        ),
        (
            "vllm:num_requests_running 4\nvllm:num_requests_swapped 1\nvllm:num_requests_waiting 2 1700000000\n"
            "vllm:gpu_cache_usage_perc 0.9\n",
            Gauges(4.0, 3.0, 0.9),
        ),
        (
            'sglang:num_running_reqs{model_name="m"} 162.0\nsglang:num_queue_reqs{model_name="m"} 2826.0\n'
            'sglang:token_usage{model_name="m"} 0.28\n',
            Gauges(162.0, 2826.0, 0.28),
        ),
        ("llamacpp:requests_processing 4\nllamacpp:requests_deferred 46\n", Gauges(4.0, 46.0)),
        ("# TYPE tgi_queue_size gauge\ntgi_queue_size 7\ntgi_batch_current_size 8\n", Gauges(8.0, 7.0)),
        ("vllm:num_requests_running NaN\n", None),
        ("process_cpu_seconds_total 12\n", None),
        ("<html><body>404 {not found}</body></html>", None),
        ("", None),
    ],
)
def test_the_metrics_pages_of_four_servers_are_understood(page: str, gauges: Gauges | None):
    assert parse_gauges(page) == gauges


@pytest.mark.parametrize(("share", "busy"), [(0.01, 0.5), (0.02, 0.5), (0.05, 0.05)])
def test_refusals_for_no_reason_do_not_close_the_window(share: float, busy: float):
    """The server takes 400 at once, and refuses one request in so many whatever their number: that is no ceiling. By
    ceilings alone one request at a time was left: 0.0025."""
    seen = drive(Server(400, 0.2, 0.2, seed=5), 200.0, 40.0, refusing=share)
    assert seen.busy >= busy and abs(seen.rejects - share) < 0.2 * share


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_a_ceiling_is_found_beside_refusals_for_no_reason(share: float):
    seen = drive(Server(100, 0.2, 0.2, seed=6, reject=True), 300.0, 60.0, refusing=share)
    assert seen.busy >= 0.85 and seen.rejects < share + 0.01
