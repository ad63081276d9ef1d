"""The HTML page in a real browser: it sorts, filters, opens and links, by mouse and keyboard, and asks for nothing."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browsing
from making import run_here

from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.page import html
from mpeval.leaderboard.reported import ReportedModel, Source, reported
from mpeval.leaderboard.store import append

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: the package `chromium` of Debian")
HOSTILE = '<img src="https://example.org/x.png" onerror="document.title=1">'
NUMBERS = [
    ("LAMBADA", "lambada/paper", "accuracy", "66.51", 8.3e9, "Megatron"),
    ("LAMBADA", "lambada/paper", "accuracy", "45.99", 117e6, "GPT-2"),
    ("LAMBADA", "lambada/paper", "accuracy", "63.24", 1.542e9, "GPT-2"),
    ("WikiText-103", "wikitext103/paper", "perplexity", "10.81", 8.3e9, "Megatron"),
    ("WikiText-103", "wikitext103/paper", "perplexity", "9.5", None, HOSTILE),
]


def published() -> list[object]:
    """Return five numbers of two boards, one of a model with a hostile name and without a size."""
    return [
        reported(
            created_at="2026-01-02T03:04:05Z",
            task=title.lower(),
            title=title,
            protocol=protocol,
            split="test",
            values={metric: printed},
            items={"accuracy": 5153} if metric == "accuracy" else {},
            unit="proportion" if metric == "accuracy" else "perplexity",
            model=ReportedModel(name=f"{family} {printed}", family=family, parameters=parameters),
            source=Source(
                title="A Paper of a Very Long Title, with a Subtitle, and Another",
                url="https://example.org/paper",
                locator="Table 1",
                date="2019-09-17",
            ),
        )
        for title, protocol, metric, printed, parameters, family in NUMBERS
    ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html(boards(published())), encoding="utf-8")  # type: ignore[arg-type]
    return path.as_uri()


@pytest.fixture
def page(browser: Page, url: str) -> Iterator[Page]:
    """The page on a desktop; that it says nothing on the console and asks for nothing holds after every test."""
    browser.console.clear()
    browser.requests.clear()
    browser.look(width=1280)
    browser.open(url)
    yield browser
    assert browser.console == []
    assert {request.partition("#")[0] for request in browser.requests} <= {url, "about:blank"}


def values(page: Page) -> list[str]:
    """Return the values of the rows that are shown, from top to bottom."""
    rows = "[...document.querySelectorAll('tr.number')].filter(row => row.getClientRects().length)"
    found: list[str] = page.run(f"{rows}.map(row => row.cells[4].textContent)")
    return found


def hash_of(page: Page) -> str:
    return str(page.run("location.hash"))


def click_heading(page: Page, name: str) -> None:
    page.run(f"[...document.querySelectorAll('thead button')].find(one => one.textContent === '{name}').click()")


def choose(page: Page, place: int, value: str) -> None:
    page.run(
        f"(() => {{ const one = document.querySelectorAll('select')[{place}]; one.value = '{value}'; "
        "one.dispatchEvent(new Event('change')); })()"
    )


def search(page: Page, text: str) -> None:
    page.run(
        f"(() => {{ const one = document.querySelector('input'); one.value = '{text}'; "
        "one.dispatchEvent(new Event('input')); })()"
    )


BOARDS = ["66.51 %", "63.24 %", "45.99 %", "9.5", "10.81"]


def test_it_sorts_by_any_column_and_back(page: Page) -> None:
    assert values(page) == BOARDS
    click_heading(page, "Value")
    assert values(page) == ["66.51 %", "63.24 %", "45.99 %", "10.81", "9.5"]
    assert (
        page.run("document.querySelector('[aria-sort]').textContent + document.querySelector('[aria-sort]').ariaSort")
        == "Valuedescending"
    )
    assert page.run("[...document.querySelectorAll('tr.board')].every(row => !row.getClientRects().length)")
    click_heading(page, "Value")
    assert values(page) == ["9.5", "10.81", "45.99 %", "63.24 %", "66.51 %"]
    assert hash_of(page) == "#sort=Value&order=ascending"
    click_heading(page, "Value")
    assert values(page) == BOARDS
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 0
    assert hash_of(page) == ""


def test_missing_values_are_last_whichever_way(page: Page) -> None:
    for _ in range(2):
        click_heading(page, "Parameters")
        assert values(page)[-1] == "9.5"
    assert values(page)[0] == "45.99 %"


def test_it_sorts_by_keyboard(page: Page) -> None:
    page.run("document.querySelector('thead button').focus()")
    for _ in range(4):
        page.press("Tab")
    page.press("Enter")
    page.press(" ")
    assert hash_of(page) == "#sort=Value&order=ascending"
    assert values(page)[0] == "9.5"


def test_it_filters_by_each_field_and_by_text(page: Page) -> None:
    choose(page, 1, "WikiText-103")
    assert values(page) == ["9.5", "10.81"]
    assert page.run("document.querySelector('output').value") == "2 of 5 numbers"
    search(page, "MEGATRON 10.8")
    assert values(page) == ["10.81"]
    choose(page, 1, "")
    search(page, "")
    choose(page, 4, "GPT-2")
    assert values(page) == ["63.24 %", "45.99 %"]
    assert page.run("[...document.querySelectorAll('tr.board')].filter(row => row.getClientRects().length).length") == 1
    choose(page, 3, "measured")
    assert page.run("document.querySelectorAll('select')[3].value") == ""  # there are none, so no such choice
    choose(page, 2, "wikitext103/paper")
    assert values(page) == []
    page.run("document.querySelector('#filters button').click()")
    assert values(page) == BOARDS
    assert hash_of(page) == ""


def test_charts_are_shown_of_boards_that_are_shown(page: Page) -> None:
    shown = "[...document.querySelectorAll('.charts')].filter(one => one.getClientRects().length).length"
    assert page.run(shown) == 1
    for text, charts in (("10.81", 0), ("63.24", 1), ("", 1)):
        search(page, text)
        assert page.run(shown) == charts
    choose(page, 0, "not recorded")  # the other board's task
    assert values(page) == ["9.5", "10.81"]
    assert page.run(shown) == 0
    click_heading(page, "Value")
    choose(page, 0, "")
    assert page.run(shown) == 1


def test_numbers_below_zero_are_sorted_as_numbers(page: Page) -> None:
    page.run("document.querySelectorAll('tr.number')[1].cells[4].textContent = '-3.0000'")
    click_heading(page, "Value")
    assert values(page) == ["66.51 %", "45.99 %", "10.81", "9.5", "-3.0000"]


def test_a_link_leads_to_the_same_view(page: Page, url: str) -> None:
    choose(page, 1, "LAMBADA")
    search(page, "gpt-2 63.24")
    click_heading(page, "Parameters")
    page.run("document.querySelector('tr.number:not([hidden]) a').click()")
    link, shown = hash_of(page), values(page)
    assert re.fullmatch(
        r"#benchmark=LAMBADA&text=gpt-2\+63\.24&sort=Parameters&order=descending&row=n-[0-9a-f]{12}", link
    )
    page.open("about:blank#")
    page.open(url + link)
    assert values(page) == shown == ["63.24 %"]
    assert page.run("document.querySelector('tr.open').cells[4].textContent") == "63.24 %"
    assert page.run("document.querySelector('input').value") == "gpt-2 63.24"


def test_a_link_to_what_is_not_there_shows_everything(page: Page, url: str) -> None:
    for link in ("#n-000000000000", "#benchmark=Nothing&sort=constructor", "#sort=%3Cscript%3E&row=x", "#%", "#="):
        page.open("about:blank#")
        page.open(url + link)
        assert values(page) == BOARDS


def test_details_open_and_close(page: Page) -> None:
    link = "document.querySelector('tr.number a')"
    more = "document.querySelector('tr.more')"
    assert page.run(f"{link}.ariaExpanded") == "false"
    assert page.run(f"{more}.getClientRects().length") == 0
    page.run(f"{link}.focus()")
    page.press("Enter")
    assert page.run(f"{link}.ariaExpanded") == "true"
    assert "wilson of printed n" in page.run(f"{more}.innerText")
    assert re.fullmatch("#n-[0-9a-f]{12}", hash_of(page))
    search(page, "wikitext")
    assert page.run(f"{more}.getClientRects().length") == 0
    search(page, "")
    page.press("Enter")
    assert page.run(f"{link}.ariaExpanded") == "true"  # the focus went with the row
    page.run(f"{link}.click()")
    assert page.run(f"{link}.ariaExpanded") == "false"
    assert hash_of(page) == ""


def test_what_a_name_holds_does_not_run(page: Page) -> None:
    assert page.run("document.title") == "mpeval leaderboard"
    assert page.run("document.images.length") == 0
    assert HOSTILE in page.run("document.querySelectorAll('select')[4].textContent")


def test_no_other_script_may_run(page: Page) -> None:
    page.run(
        "(() => { const made = document.createElement('script'); made.textContent = 'document.title = 1'; "
        "document.body.append(made); })()"
    )
    assert page.run("document.title") == "mpeval leaderboard"
    assert len(page.console) == 1
    assert "Content Security Policy" in page.console.pop()


def test_it_reads_without_a_script(browser: Page, url: str) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.look(width=1280)
        browser.open(url)
        assert values(browser) == BOARDS
        anchor = browser.run("document.querySelector('tr.number').id")
        assert browser.run("document.querySelector('#filters').getClientRects().length") == 0
        browser.open("about:blank#")
        browser.open(f"{url}#{anchor}")
        shown = "[...document.querySelectorAll('tr.more')].map(row => row.getClientRects().length > 0)"
        assert browser.run(shown) == [True, False, False, False, False]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_its_screen_and_can_be_read_there(width: int, scheme: str, page: Page) -> None:
    page.look(width=width, scheme=scheme)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    model = page.run("document.querySelector('.number').cells[6].getBoundingClientRect().width")
    assert model > 130  # however long the words beside it are
    background, text = (
        sum(map(int, re.findall(r"\d+", page.run(f"getComputedStyle(document.body).{which}"))))
        for which in ("backgroundColor", "color")
    )
    assert (background > 600 and text < 200) if scheme == "light" else (background < 120 and text > 600)
    assert page.run("getComputedStyle(document.querySelector('svg text')).fill") == page.run(
        "getComputedStyle(document.body).color"
    )


def test_everything_has_a_name_and_a_role(page: Page) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = [role for role, _ in named]
    assert roles.count("table") == 1
    assert roles.count("columnheader") == 13
    assert roles.count("row") >= len(NUMBERS) + 1
    assert roles.count("combobox") == 5
    for role, name in named:
        if role in {"button", "link", "combobox", "searchbox", "img", "image", "table"}:
            assert name, role


def test_it_is_served_until_it_is_interrupted(browser: Page, tmp_path: Path) -> None:
    append(tmp_path / "results.jsonl", published())  # type: ignore[arg-type]
    command = [sys.executable, "-m", "mpeval", "leaderboard", "serve", "--store", str(tmp_path / "results.jsonl")]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background job does not
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            said = process.stdout.readline()
            (address,) = re.findall(r"^(http://127\.0\.0\.1:\d+/) ", said)
            browser.console.clear()
            browser.requests.clear()
            browser.open(address)
            assert values(browser) == BOARDS
            assert browser.console == []
            assert set(browser.requests) <= {address, "about:blank"}
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_a_store_that_is_not_there_is_not_served(tmp_path: Path) -> None:
    assert run_here(f"leaderboard serve --store {tmp_path / 'nothing.jsonl'}") == 1
