from __future__ import annotations

import io

from aegis.staging import events
from aegis.staging.progress import Progress, Reporter, size_text

GIB = 2**30


def went(item: int, done: int, total: int) -> events.Progress:
    return events.Progress(item=item, bytes=done, total=total, nodes_done=0, nodes=2, seconds=0)


def node(item: int, host: str, *, ok: bool = True) -> events.NodeResult:
    return events.NodeResult(item=item, host=host, ok=ok)


def test_status_is_of_all_bytes() -> None:
    progress = Progress([GIB, 3 * GIB], [["a", "b"], ["a"]])
    assert progress.status() == "staging 0 %"
    progress.apply(went(0, GIB, GIB), 0)
    assert progress.status() == "staging 25 %"
    progress.apply(went(1, 5, 10), 1)
    assert progress.status() == "staging 62 %"


def test_a_line_has_bytes_rate_nodes_and_time_left() -> None:
    progress = Progress([4 * GIB], [["a", "b"]])
    progress.apply(went(0, 0, 4 * GIB), 0)
    progress.apply(went(0, GIB, 4 * GIB), 2)
    assert progress.line() == "staging 25 %: 1.0 GiB of 4.0 GiB, 512.0 MiB/s, 0 of 2 nodes, 0:06 left"
    progress.apply(node(0, "a", ok=False), 3)
    assert "1 of 2 nodes, 1 failed" in progress.line()


def test_a_node_is_done_when_it_has_all_that_it_needs() -> None:
    progress = Progress([1, 1], [["a", "b"], ["a"]])
    for event in (node(0, "a"), node(0, "b"), node(0, "b"), node(0, "stranger")):
        progress.apply(event, 0)
    assert progress.nodes_done == 1
    progress.apply(node(1, "a"), 0)
    assert (progress.nodes_done, progress.part) == (2, 1.0)


def test_what_is_out_of_bounds_is_left_out() -> None:
    progress = Progress([1], [["a"]])
    progress.apply(went(7, 1, 1), 0)
    progress.apply(events.Done(seconds=1), 0)
    progress.apply(went(0, 5, 0), 0)
    assert progress.part == 0
    assert Progress([], []).status() == "staging 100 %"


def test_the_rate_is_of_the_last_seconds() -> None:
    progress = Progress([100 * GIB], [["a"]])
    for second in range(30):
        progress.apply(went(0, min(second, 15) * GIB, 100 * GIB), second)
    assert progress.rate() == 0


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    now, stream = [0.0], io.StringIO()
    report = Reporter(Progress([100], [["a"]]), stream, lambda: now[0])
    for second in range(31):
        now[0] = second
        report(went(0, second, 100))
    report.close()
    assert len(stream.getvalue().splitlines()) == 3
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_written_over() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    report = Reporter(Progress([100], [["a"]]), stream, lambda: 1.0)
    report(went(0, 50, 100))
    report.close()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r")


def test_sizes_for_people() -> None:
    assert [size_text(each) for each in (5, 1536, GIB, 2000 * GIB)] == [
        "5 B",
        "1.5 KiB",
        "1.0 GiB",
        "2.0 TiB",
    ]
