"""Plots of characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.report.plot import Axis, Series, plot, round_up

X, Y = Axis("speed", 240, 4), Axis("throughput", 300, 3)


def test_a_line_joins_its_points() -> None:
    lines = plot(
        [Series("a", "f", [(0, 0), (240, 300)])], X, Y, title="Title", width=32, height=15
    ).splitlines()
    assert lines == [
        "               Title",
        "   ┌───────────────────────────┐",
        "300┤ ff a                    ff│",
        "   │                      fff  │",
        "   │                   fff     │",
        "200┤                fff        │",
        "   │              ff           │",
        "   │           fff             │",
        "100┤        fff                │",
        "   │     fff                   │",
        "   │  fff                      │",
        "  0┤ff                         │",
        "   └┬─────┬──────┬──────┬─────┬┘",
        "    0    60     120    180  240",
        "throughput        speed",
    ]


def test_later_series_lie_over_earlier_ones_and_the_legend_over_all() -> None:
    both = [Series("first", "f", [(120, 150)]), Series("second", "x", [(120, 150)])]
    text = plot(both, X, Y, title="", width=40, height=15)
    assert text.count("x") == 3  # the point, and the two of the legend
    assert text.count("f") == 3  # two of the legend, one in its word


def test_points_beyond_the_axes_are_left_out() -> None:
    assert "q" not in plot([Series("a", "q", [(500, 10)])], X, Y, title="", width=40, height=15).replace(
        "qq", ""
    )


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=20),
    st.integers(30, 120),
    st.integers(10, 40),
)
def test_a_plot_has_the_size_that_is_asked_for(
    points: list[tuple[float, float]], width: int, height: int
) -> None:
    x = Axis("x", round_up(max(x for x, _ in points), 20), 4)
    y = Axis("y", round_up(max(y for _, y in points), 50), 6)
    lines = plot([Series("a", "*", points)], x, y, title="t", width=width, height=height).splitlines()
    assert len(lines) == height
    assert max(map(len, lines)) == width


def test_axes_end_on_round_numbers() -> None:
    assert [round_up(value, 50) for value in (0, 1, 50, 51)] == [50, 50, 50, 100]
