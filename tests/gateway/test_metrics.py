"""The page of a gateway's metrics, read as Prometheus reads it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aegis.api.targets import Target
from aegis.gateway.balance import Balance, Outcome, Policy
from aegis.gateway.metrics import GONE_SECONDS, SWEEP_SECONDS, Metrics
from aegis.gateway.usage import Usage

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

HOSTILE = 'a"b\\c\nd{e}'


class Site:
    def __init__(self, *targets: Target) -> None:
        self.now = 0.0
        self.balance = Balance(Policy(), lambda: self.now, rng=random.Random(0))
        self.balance.update(targets)
        self.queued = 0
        self.metrics = Metrics(self.balance, lambda: self.queued, clock=lambda: self.now)

    def samples(self) -> list[Sample]:
        page, kind = self.metrics.exposition()
        assert kind.startswith("text/plain; version=0.0.4")
        return [each for family in text_string_to_metric_families(page.decode()) for each in family.samples]

    def values(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for sample in self.samples()
            if sample.name == f"aegis_gateway_{name}"
        }


@pytest.fixture
def site() -> Site:
    return Site(Target("h", 1, ("m", "k"), "n", "i1"), Target("h", 2, ("m",), "n", "i2"))


def test_requests_and_tokens(site: Site) -> None:
    for _ in range(3):
        site.metrics.answered(
            model="m",
            key="alice",
            instance="i1",
            code=200,
            seconds=2,
            first_byte_seconds=0.2,
            usage=Usage(5, 7),
        )
    site.metrics.answered(model="m", key="alice", instance="i1", code=500, seconds=1)
    site.metrics.answered(model="m", code=429, seconds=0.001)
    requests = site.values("requests_total", "model", "key", "instance", "code")
    assert requests == {
        ("m", "alice", "i1", "200"): 3,
        ("m", "alice", "i1", "500"): 1,
        ("m", "", "", "429"): 1,
    }
    tokens = site.values("tokens_total", "model", "key", "instance", "kind")
    assert tokens["m", "alice", "i1", "prompt"] == 15
    assert tokens["m", "alice", "i1", "completion"] == 21
    assert len(tokens) == 2  # the gateway itself writes none


def test_durations(site: Site) -> None:
    for seconds in (0.05, 0.05, 3.0, 1e9):
        site.metrics.answered(
            model="m", instance="i1", code=200, seconds=seconds, first_byte_seconds=seconds / 2
        )
    buckets = site.values("request_seconds_bucket", "model", "instance", "le")
    assert buckets["m", "i1", "0.05"] == 2
    assert buckets["m", "i1", "2.5"] == 2
    assert buckets["m", "i1", "5.0"] == 3
    assert buckets["m", "i1", "+Inf"] == 4
    assert site.values("request_seconds_count", "instance") == {("i1",): 4}
    assert site.values("time_to_first_byte_seconds_count", "instance") == {("i1",): 4}
    assert site.values("request_seconds_sum", "instance")["i1",] == pytest.approx(1e9 + 3.1)


def test_durations_by_key(site: Site) -> None:
    for key, instance, seconds in (("alice", "i1", 2), ("alice", "i2", 4), (HOSTILE, "i1", 1), ("", "i1", 9)):
        site.metrics.answered(
            model="m", key=key, instance=instance, code=200, seconds=seconds, first_byte_seconds=seconds / 10
        )
    labels = "model", "key"
    assert site.values("key_request_seconds_count", *labels) == {("m", "alice"): 2, ("m", HOSTILE): 1}
    assert site.values("key_request_seconds_sum", *labels)["m", "alice"] == 6
    first = site.values("key_time_to_first_byte_seconds_sum", *labels)
    assert first["m", "alice"] == pytest.approx(0.6)


def test_how_busy_instances_are(site: Site) -> None:
    backend = site.balance.choose("k", ())
    assert backend is not None
    site.balance.begin(backend)
    site.balance.begin(backend)
    site.queued = 5
    assert site.values("in_flight", "model", "instance") == {("m", "i1"): 2, ("m", "i2"): 0}
    assert site.values("breaker", "instance") == {("i1",): 0, ("i2",): 0}
    assert site.values("queue_length") == {(): 5}
    site.balance.end(backend, Outcome.REFUSED)
    assert site.values("breaker", "instance")["i1",] == 2
    site.now += 100
    site.balance.suspects()
    assert site.values("breaker", "instance")["i1",] == 1


def test_an_instance_that_moved_is_one(site: Site) -> None:
    for port in (1, 5):
        site.balance.update([Target("h", port, ("m",), "n", "i1")])
        backend = site.balance.choose("m", ())
        assert backend is not None
        site.balance.begin(backend)
    shown = [each for each in site.samples() if each.name == "aegis_gateway_in_flight"]
    assert [(each.labels["instance"], each.value) for each in shown] == [("i1", 2)]
    assert site.values("breaker", "instance") == {("i1",): 0}


def test_retries_and_refusals(site: Site) -> None:
    for _ in range(2):
        site.metrics.retried("refused")
    site.metrics.refused("queue_full")
    assert site.values("retries_total", "reason") == {("refused",): 2}
    assert site.values("refused_total", "reason") == {("queue_full",): 1}


def test_models_that_nobody_serves_are_one(site: Site) -> None:
    for number in range(100):
        site.metrics.answered(model=f"guess{number}", code=404, seconds=0)
    assert site.values("requests_total", "model", "code") == {("other", "404"): 100}


def test_the_last_answer_of_a_model_that_goes_is_still_its_own(site: Site) -> None:
    site.balance.update([])
    site.metrics.answered(model="k", instance="i1", code=200, seconds=1)
    assert site.values("requests_total", "model", "instance") == {("k", "i1"): 1}


def test_instances_that_have_gone_are_forgotten_after_some_scrapes(site: Site) -> None:
    for name in ("i1", "i2"):
        site.metrics.answered(model="m", instance=name, code=200, seconds=1)
    site.balance.update([Target("h", 2, ("m",), "n", "i2")])
    site.now += SWEEP_SECONDS
    assert set(site.values("requests_total", "instance")) == {("i1",), ("i2",)}
    assert set(site.values("breaker", "instance")) == {("i2",)}
    site.now += GONE_SECONDS
    assert set(site.values("requests_total", "instance")) == {("i2",)}
    assert set(site.values("request_seconds_count", "instance")) == {("i2",)}
    site.balance.update([Target("h", 1, ("m",), "n", "i1")])
    site.metrics.answered(model="m", instance="i1", code=200, seconds=1)
    assert site.values("requests_total", "instance")["i1",] == 1


def test_one_that_comes_back_in_time_goes_on(site: Site) -> None:
    site.metrics.answered(model="m", instance="i1", code=200, seconds=1)
    targets = [Target("h", 1, ("m",), "n", "i1")]
    for _ in range(10):
        site.balance.update([])
        site.now += SWEEP_SECONDS
        site.samples()
        site.balance.update(targets)
        site.now += GONE_SECONDS
        site.metrics.answered(model="m", instance="i1", code=200, seconds=1)
        site.samples()
    assert site.values("requests_total", "instance") == {("i1",): 11}


def test_hostile_names() -> None:
    site = Site(Target("h", 1, (HOSTILE,), "n", HOSTILE))
    site.metrics.answered(model=HOSTILE, key="k", instance=HOSTILE, code=200, seconds=1)
    assert site.values("requests_total", "model", "instance") == {(HOSTILE, HOSTILE): 1}
    assert site.values("in_flight", "model", "instance") == {(HOSTILE, HOSTILE): 0}


def test_the_process_is_there_too(site: Site) -> None:
    assert "process_cpu_seconds_total" in {sample.name for sample in site.samples()}
