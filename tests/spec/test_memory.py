"""Amounts of memory: one form for both schedulers, and nothing that means two things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.spec.memory import format_memory


@pytest.mark.parametrize(
    ("text", "form"),
    [
        *[(text, "64G") for text in ("64G", "64g", "64GB", "64gb", "64GiB", "64 G", " 64 GiB ")],
        *[("1.5T", "1536G"), ("0.5G", "512M"), ("2T", "2T"), ("512M", "512M"), ("1024K", "1024K")],
        ("0", "0"),
    ],
)
def test_what_people_write_becomes_what_schedulers_read(text: str, form: str) -> None:
    assert format_memory(text) == form


@pytest.mark.parametrize(
    "text", ["64", "1024", "", "G", "64X", "-1G", "1e3G", "64G; rm", "0G", "64G\n8G", "٦٤G", "$(x)"]
)
def test_what_means_two_things_or_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`"):
        format_memory(text)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        form = format_memory(text)
    except ValueError:
        return
    assert form == "0" or (form[:-1].isascii() and form[:-1].isdigit() and form[-1] in "KMGT")
    assert format_memory(form) == form
