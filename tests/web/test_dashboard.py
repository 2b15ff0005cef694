"""The page in a browser: what it shows, how it follows, who can use it, and that nothing hostile runs in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.registry.conftest import Clock, push, report, running
from tests.web.fleets import Site as Fleet
from tests.web.fleets import job, map_run

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.registry.store import Store
    from tests.registry.conftest import Site
    from tests.web.browser import Browser

pytestmark = pytest.mark.lab

HOSTILE = (
    "<img src=x onerror=window.hit=1>",
    "</script><script>window.hit=1</script>",
    "javascript:window.hit=1",
    "{{constructor.constructor('window.hit=1')()}}",
    "'\"><svg onload=window.hit=1>",
    "__proto__",
    "constructor",
    "a\u202eb\x00c\nd",
)
ROWS = "[...document.querySelectorAll('tbody tr[data-id]')].map(row => row.dataset.id)"


def first(fleet: Fleet, store: Store) -> None:
    for node in range(fleet.nodes):
        store.apply(fleet.push(node, time.monotonic()))


def look(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/ui")
    browser.wait(f"{ROWS}.length > 0")


def row(name: str) -> str:
    return f"document.querySelector('tr[data-id=\"{name}\"]')?.innerText ?? ''"


def test_it_shows_the_fleet_and_follows_it(browser: Browser, site: Site, store: Store) -> None:
    fleet = Fleet(12, 4, ("org/alpha", "org/beta"), time.time() - 60)
    first(fleet, store)
    store.apply(job(time.time(), walltime_end=time.time() + 3700, successor=None))
    store.apply(map_run(30_000))
    look(browser, site)
    assert "12 of 12 healthy" in browser.text("header")
    assert "live" in browser.text("#live")
    assert browser.text("#jobs").count("1:01:") == 1
    assert "hands over" not in browser.text("#jobs")
    assert "30000 of 120000" in browser.text("#maps")
    assert browser.ask("document.querySelectorAll('#nodes li').length") == 3
    assert browser.ask("[...document.querySelectorAll('.card h3')].map(e => e.textContent)") == [
        "org/alpha",
        "org/beta",
    ]
    first(fleet, store)  # the second look gives rates
    browser.wait("/generated [1-9]/.test(document.querySelector('.card').innerText)")
    browser.wait("/p99 \\d/.test(document.querySelector('.card').innerText)")
    assert browser.ask("document.querySelector('#alerts').hidden")
    fleet.changes[5] = {
        "status": "failed",
        "reason": "out of memory",
        "tail": ["one", "two"],
        "since": time.time(),
    }
    first(fleet, store)
    browser.wait(f"{row('alpha-5')}.includes('failed')")
    browser.wait(f"{ROWS}[0] === 'alpha-5'")  # the worst first
    browser.wait("document.querySelector('#alerts').innerText.includes('alpha-5')")
    browser.wait("document.querySelector('#total').textContent === '11 of 12 healthy'")
    browser.wait("document.querySelector('#errors').innerText.includes('out of memory')")
    browser.wait("document.querySelector('#said').textContent.includes('alpha-5 is failed')")
    store.apply(push("nid001003"))
    browser.wait(f"!{ROWS}.includes('beta-9')")
    store.apply(job(time.time(), successor="slurm://5"))
    browser.wait("document.querySelector('#jobs').innerText.includes('hands over to slurm://5')")
    assert browser.said == []


def test_filter_and_sort(browser: Browser, site: Site, store: Store) -> None:
    fleet = Fleet(12, 4, ("org/alpha", "org/beta"), time.time() - 60)
    fleet.changes[7] = {"status": "unhealthy", "reason": "wedged"}
    first(fleet, store)
    look(browser, site)
    browser.ask("document.querySelector('#find').focus()")
    browser.write("nid001002 beta")
    browser.wait("document.querySelector('#shown').textContent === '2 of 12 shown'")
    assert browser.ask(ROWS) == ["beta-7", "beta-6"]
    browser.press("Escape")
    browser.wait("document.querySelector('#shown').textContent === '12 shown'")
    choose = "(() => {{ const e = document.querySelector('{}'); e.value = '{}'; e.dispatchEvent(new Event('input')); }})()"
    browser.ask(choose.format("#state", "unhealthy"))
    assert browser.ask(ROWS) == ["beta-7"]
    browser.ask(choose.format("#state", ""))
    browser.ask(choose.format("#model", "org/alpha"))
    assert len(browser.ask(ROWS)) == 6
    browser.ask(choose.format("#model", ""))
    heads = "[...document.querySelectorAll('thead th')].find(e => e.textContent === 'Instance')"
    browser.ask(f"{heads}.querySelector('button').click()")
    assert browser.ask(ROWS)[:3] == ["alpha-0", "alpha-1", "alpha-2"]
    assert browser.ask(f"{heads}.getAttribute('aria-sort')") == "ascending"
    browser.ask(f"{heads}.querySelector('button').click()")
    assert browser.ask(ROWS)[:2] == ["beta-11", "beta-10"]
    browser.ask("document.querySelector('#nodes button').click()")
    browser.wait("document.querySelector('#shown').textContent === '4 of 12 shown'")


def test_the_keyboard_is_enough(browser: Browser, store: Store, tmp_path: Path) -> None:
    (tmp_path / "m-0.log").write_text("the last words <b>\n")
    store.apply(push("n", report("m-0", model="m", status="failed", metadata={"reason": "gone"})))
    with running(store, Clock(), token="sesame", logs=tmp_path) as site:
        look(browser, site)
        browser.press("Tab")
        assert browser.ask("document.activeElement.className") == "skip"
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for _ in range(60):
            if browser.ask("Boolean(document.activeElement.closest('tbody'))"):
                break
            browser.press("Tab")
        browser.press("Enter")
        browser.wait("document.querySelector('#detail').open && document.querySelector('#ask').open")
        assert browser.ask("document.activeElement.id") == "token"
        browser.write("sesame")
        browser.press("Enter")
        browser.wait("document.querySelector('#log').textContent === 'the last words <b>\\n'")
        assert browser.ask("sessionStorage.getItem('aegis-token')") == "sesame"
        browser.press("Escape")
        browser.wait("!document.querySelector('#detail').open")
        assert browser.ask("document.activeElement.textContent") == "m-0"
        browser.ask("document.querySelector('figure').focus()")
        browser.press("ArrowLeft")
        assert ":" in browser.ask("document.activeElement.getAttribute('aria-label')").split(",")[0]
        browser.ask("sessionStorage.clear()")


def test_screen_readers_get_names(browser: Browser, site: Site, store: Store) -> None:
    first(Fleet(4, 4, ("org/alpha",), time.time()), store)
    store.apply(job(time.time()))
    look(browser, site)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    seen = [
        (each["role"]["value"], each.get("name", {}).get("value", "")) for each in tree if not each["ignored"]
    ]
    roles = {role for role, _ in seen}
    assert {
        "banner",
        "main",
        "table",
        "columnheader",
        "rowheader",
        "heading",
        "search",
        "timer",
        "status",
    } <= roles
    for role in (
        "button",
        "textbox",
        "searchbox",
        "combobox",
        "image",
        "region",
        "table",
        "article",
        "progressbar",
    ):
        assert all(name for kind, name in seen if kind == role), role
    images = [name for role, name in seen if role == "image"]
    assert any(name.startswith("Tokens/s, last 2 minutes: ") for name in images)


def test_dark_and_light(browser: Browser, site: Site, store: Store) -> None:
    first(Fleet(2, 2, ("m",), time.time()), store)
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.prefer("dark")
    look(browser, site)
    assert browser.ask(paper) == "rgb(20, 23, 30)"
    browser.ask("document.querySelector('#theme').click()")
    assert browser.ask(paper) == "rgb(255, 255, 255)"
    look(browser, site)
    assert browser.ask(paper) == "rgb(255, 255, 255)"  # it is remembered
    browser.ask("localStorage.clear()")
    browser.prefer("light")
    look(browser, site)
    assert browser.ask(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits(browser: Browser, site: Site, store: Store, width: int) -> None:
    fleet = Fleet(8, 4, ("org/a-very-long-name-of-a-model-without-any-blank-in-it-at-all", "b"), time.time())
    fleet.changes[1] = {"status": "failed", "reason": "x" * 300, "tail": ["y" * 300]}
    first(fleet, store)
    store.apply(job(time.time(), name="n" * 90, service=None, gateways=["10.0.0.1:8080"] * 12))
    browser.size(width, 900)
    look(browser, site)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.ask("document.querySelector('tbody button').click()")
    assert browser.ask("document.querySelector('#detail').getBoundingClientRect().width") <= width


def test_hostile_names_do_not_run(browser: Browser, site: Site, store: Store) -> None:
    def changed(**more: Any) -> None:
        reports = [
            report(
                name, model=name, status="failed", host=name, service_type=name, metadata=facts(name) | more
            )
            for name in HOSTILE
        ]
        store.apply(push("n", *reports))

    def facts(name: str) -> dict[str, Any]:
        return {"reason": name, "job": name, "node": name, "tail": [name], "devices": [1], "since": 1e9}

    changed()
    store.apply(
        job(
            time.time(),
            handle=HOSTILE[0],
            name=HOSTILE[1],
            state=HOSTILE[2],
            reason=HOSTILE[3],
            gateways=list(HOSTILE),
        )
    )
    look(browser, site)
    assert len(browser.ask(ROWS)) == len(HOSTILE)
    changed(reason=HOSTILE[1] + "!")
    browser.wait("document.querySelector('#errors').innerText.includes('</script>')")
    for number in range(len(HOSTILE)):
        browser.ask(f"document.querySelectorAll('tbody tr[data-id] button')[{number}].click()")
        browser.ask("document.querySelector('#detail').close()")
    assert HOSTILE[0] in browser.text("#models")
    assert browser.ask("window.hit ?? 0") == 0
    assert browser.ask("document.querySelectorAll('img, main svg svg, main script').length") == 0
    assert browser.ask("({}).status ?? ''") == ""
    assert [said for said in browser.said if "404" not in said] == []  # there are no logs


def test_a_registry_that_is_gone_is_seen_and_one_that_is_back_is_followed(
    browser: Browser, store: Store
) -> None:
    store.apply(push("n", report("m-0", model="m")))
    with running(store, Clock()) as site:
        look(browser, site)
        port = site.port
    browser.wait("document.body.classList.contains('stale')")
    assert "stale since" in browser.text("#live")
    store.apply(push("n", report("m-0", model="m", status="draining")))
    with running(store, Clock(), port=port):
        browser.wait(f"{row('m-0')}.includes('draining')")
        browser.wait("document.querySelector('#live').textContent === 'live'")


def test_a_thousand_instances_are_smooth(browser: Browser, site: Site, store: Store) -> None:
    fleet = Fleet(1000, 4, ("org/alpha", "org/beta"), time.time() - 60)
    first(fleet, store)
    look(browser, site)
    assert browser.ask("document.querySelectorAll('tbody tr').length") < 60  # only those in sight
    assert browser.ask("document.querySelector('#instances table').getAttribute('aria-rowcount')") == "1001"
    spent = []
    for number in range(6):
        fleet.changes[number] = {"status": "unhealthy", "reason": "slow"}
        before = browser.metric("ScriptDuration")
        first(fleet, store)  # every one of them has a new load
        browser.wait(f"{row(f'alpha-{number}')}.includes('unhealthy')")
        spent.append(browser.metric("ScriptDuration") - before)
    assert sorted(spent)[len(spent) // 2] < 0.050  # seconds
    browser.ask("document.querySelector('.scroll').scrollTop = 1e6")
    browser.wait(f"{ROWS}.includes('beta-999')")
