"""A gateway in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.gateway.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Site]:
    """A place for a gateway and its servers; nothing is started yet."""
    place = Site()
    yield place
    place.close()
