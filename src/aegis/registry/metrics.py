"""What the registry tells Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp.typedefs import Handler

    from aegis.registry.store import Store

BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0)


class Metrics(Collector):
    """What `/metrics` shows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.pushes = Counter("aegis_registry_pushes", "Pushes of agents", registry=self._registry)
        self._requests = Histogram(
            "aegis_registry_request_seconds",
            "Duration of requests",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Count the services when somebody looks."""
        family = GaugeMetricFamily(
            "aegis_registry_services", "Services by type and status", labels=["type", "status"]
        )
        for (service_type, status), number in sorted(self._store.tally().items()):
            family.add_metric([service_type, status], number)
        yield family

    async def expose(self, _request: web.Request) -> web.Response:
        """Answer a scrape."""
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Measure a request, by route and not by path: ids would make endless series."""
        began = time.perf_counter()
        try:
            return await handler(request)
        finally:
            route = request.match_info.route.resource
            labels = (request.method, route.canonical) if route else ("", "unknown")
            self._requests.labels(*labels).observe(time.perf_counter() - began)
