"""A registry that has a fleet, and a browser that looks at it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from aegis.registry.store import Store
from tests.registry.conftest import Clock, running
from tests.web.browser import PROGRAM, Browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.registry.conftest import Site


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("needs Chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    chromium.size(1280, 900)
    chromium.prefer("light")
    chromium.said.clear()
    yield chromium
    chromium.open("about:blank")


@pytest.fixture
def store() -> Store:
    return Store(wall=time.time, monotonic=time.monotonic)


@pytest.fixture
def site(store: Store) -> Iterator[Site]:
    with running(store, Clock()) as registry:
        yield registry
