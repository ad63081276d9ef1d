"""The HTML page: nothing runs or leaves it that is not its own, every number is on it with what is known of it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import threading
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest
from parsing import COLUMNS, Page
from recorded import metric_of, record
from test_leaderboard import HOSTILE, MEMBERS, SEEDS, TRAINING

from mpeval.errors import UsageError
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.charts import FEWEST, MOST_CHARTS, charts
from mpeval.leaderboard.page import html, policy
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported, ReportedModel, Source, reported
from mpeval.leaderboard.serve import _names, server
from mpeval.leaderboard.svg import inlined

RIGHT_TO_LEFT = "\u202emodel\u200f"
NAMES = (*HOSTILE, RIGHT_TO_LEFT, "=cmd()", "100 % $x_1^2$ #\\&", "x" * 200, "日本語 \x07 bell", "</script></style>")


def published(value: str = "66.51", **changes: Any) -> Reported:
    """Return a number of the Megatron-LM paper; what is not of the source is of the line, or its model."""
    source = {
        "title": "Megatron-LM",
        "url": "https://arxiv.org/abs/1909.08053",
        "locator": "Table 3",
        "date": "2019-09-17",
        "quote": "8.3B 10.81 66.51%",
        "evidence": "S2",
    }
    model = {"name": "Megatron-LM 8.3B", "family": "Megatron", "parameters": 8.3e9, "shots": "0"}
    line: dict[str, Any] = {
        "created_at": "2026-01-02T03:04:05Z",
        "task": "lambada",
        "title": "LAMBADA",
        "protocol": "lambada/megatron-strict",
        "split": "test",
        "values": {"accuracy": value},
        "items": {"accuracy": 5153},
        "unit": "proportion",
        "note": "raw text",
    }
    source["title"] = changes.pop("paper", source["title"])
    for fields in (line, model, source):
        fields |= {key: changes.pop(key) for key in list(changes) if key in fields}
    assert not changes
    return reported(**line, model=ReportedModel(**model), source=Source(**source))  # type: ignore[arg-type]


def page_of(*numbers: Record | Reported) -> str:
    return html(boards(numbers))


def sweep(**changes: Any) -> list[Record]:
    """Return numbers of one model at four iterations."""
    return [record(0.3 + step / 10, iteration=1000 * step, digest=f"sha256:{step}", **changes) for step in (1, 2, 3, 4)]


def full(text: str) -> list[Record | Reported]:
    """Return enough of both kinds for every chart, with `text` wherever a text may be."""
    parts = [metric_of(0.7, name="accuracy_middle"), metric_of(0.5, name="accuracy_high"), metric_of(0.1, name=text)]
    measured: dict[str, Any] = {"title": text, "protocol": text, "split": text, "other_metrics": parts}
    mine = [
        record(
            0.4 + step / 100,
            name=text,
            iteration=step,
            digest=f"sha256:{step}",
            parameters=10**6 * step,
            created_at=f"202{step}-01-02T03:04:05Z",
            command=text,
            dtype=text,
            device=text,
            training=TRAINING.model_copy(update={"recipe": text, "selection": text}),
            seeds=SEEDS.model_copy(update={"split": text, "metric": text}),
            **measured,
        )
        for step in (1, 2, 3)
    ]
    theirs = [
        published(
            "45",
            split=text,
            title=text,
            paper=text,
            locator=text,
            quote=text,
            note=text,
            name=text,
            family=text,
            shots=text,
            protocol=text,
        ),
        published(title=text, protocol=text, split=text, name=f"{text} 2"),
    ]
    return [*mine, *theirs, record(0.2, name=text, members=[text], flags=[text, "partial"], **measured)]


# ---- what it is made of ----


def test_only_the_pages_own_style_and_script_may_run() -> None:
    page = Page(page_of(record(), published()))
    (said,) = [
        named["content"] or ""
        for tag, named in page.elements
        if tag == "meta" and named.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in said.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest(page.texts['style'])}'",
        "script-src": f"'sha256-{digest(page.texts['script'])}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert policy("a", "b") != policy("a", "c") != policy("b", "c")
    assert page.tags.count("style") == page.tags.count("script") == 1
    # a rule counts only for what comes after it
    assert page.tags.index("meta") < page.tags.index("style") < page.tags.index("script")


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@pytest.mark.parametrize("text", ["x", *NAMES])
def test_nothing_is_asked_of_elsewhere(text: str) -> None:
    page = Page(page_of(*full(text)))
    assert not {"img", "iframe", "object", "embed", "form", "base", "image", "foreignobject"} & set(page.tags)
    for tag, named in page.elements:
        assert not [name for name in named if name.startswith("on") or name in {"style", "src", "srcset", "action"}]
        href = named.get("href") or "#"
        if tag == "a" and not href.startswith("#"):
            assert href == "https://arxiv.org/abs/1909.08053"
            assert named["rel"] == "noreferrer"
        else:
            assert href.startswith("#") or (tag, href) == ("link", "data:,")
    for outside in ("url(", "@import", "fetch(", "XMLHttpRequest", "import(", "WebSocket", "innerHTML", "eval("):
        assert outside not in page.texts["style"] + page.texts["script"]


@pytest.mark.parametrize("text", NAMES)
def test_hostile_names_are_only_text(text: str) -> None:
    page, plain = Page(page_of(*full(text))), Page(page_of(*full("x")))
    html_only = [
        [tag for tag in one.tags if tag in {"tr", "td", "th", "dl", "a", "script", "section"}] for one in (page, plain)
    ]
    assert html_only[0] == html_only[1]
    assert page.texts == plain.texts
    wanted = text.replace("\r\n", "\n")
    assert wanted in [cell.replace("\r\n", "\n") for row in page.rows for _, cell in row]
    assert wanted in [said.replace("\r\n", "\n") for one in page.details for said in one.values()]


def test_ids_are_distinct_also_where_a_record_stands_twice() -> None:
    numbers = full("x")
    page = Page(page_of(*numbers, *numbers))
    ids = [named["id"] for _, named in page.elements if "id" in named]
    assert len(ids) == len(set(ids))
    targets = {named["href"] for _, named in page.elements if (named.get("href") or "").startswith("#")}
    assert targets <= {f"#{name}" for name in ids}


def test_equal_numbers_give_equal_bytes() -> None:
    numbers = full("x")
    assert page_of(*numbers) == page_of(*numbers) == page_of(*reversed(numbers))


# ---- what it says ----


def test_the_table_is_in_the_order_of_boards_and_ranks() -> None:
    numbers = [record(0.4), record(0.6, digest="sha256:b"), published(), record(0.5, protocol="lambada/a")]
    page = Page(page_of(*numbers))
    assert tuple(page.headings[: len(COLUMNS)]) == COLUMNS
    assert len(page.headings) == len(COLUMNS) + 2
    assert "the arg-max, given the text before it" in page.headings[-2]
    assert "lambada/a" in page.headings[-1]
    shown = [[dict(row)[name] for name in ("Protocol", "Rank", "Value")] for row in page.rows]
    assert shown == [
        ["lambada/megatron-strict", "1", "66.51 %"],
        ["lambada/megatron-strict", "2", "60.00 %"],
        ["lambada/megatron-strict", "3", "40.00 %"],
        ["lambada/a", "1", "50.00 %"],  # a protocol that mpeval does not have
    ]


def test_a_reported_number_says_who_says_it() -> None:
    page = Page(page_of(published()))
    assert dict(page.rows[0]) == {
        "Task": "Language Modelling",
        "Benchmark": "LAMBADA",
        "Split": "test",
        "Metric": "accuracy",
        "Value": "66.51 %",
        "95 % interval": "65.21 % - 67.79 %",
        "Model": "Megatron-LM 8.3Bunattainable",
        "Parameters": "8.3B",
        "Rank": "1",
        "Kind": "reported",
        "Protocol": "lambada/megatron-strict",
        "Paper or source": "Megatron-LMTable 3",
        "Date": "2019-09-17",
    }
    said = page.details[0]
    assert said["n"] == "5,153"
    assert said["interval"] == "65.21 % - 67.79 %, 95 %, wilson of printed n; standard error 0.66 %"
    assert said["flags"] == "unattainable"
    assert (said["quote"], said["note"], said["evidence"]) == ("8.3B 10.81 66.51%", "raw text", "two sources print it")
    assert (said["family"], said["shots"], said["printed there"]) == ("Megatron", "0", "66.51")


def test_a_measured_number_says_what_it_takes_to_believe_it() -> None:
    parts = [metric_of(0.7, name="accuracy_middle")]
    page = Page(page_of(record(training=TRAINING, seeds=SEEDS, other_metrics=parts), record(members=MEMBERS)))
    finetuned, ensemble = sorted(page.details, key=lambda said: "seed" not in said)
    assert finetuned["n"] == "5,153, 2,319 right"
    assert finetuned["accuracy middle"] == "70.00 % (69.00 % - 71.00 %)"
    assert finetuned["protocol"].startswith("lambada/megatron-strict: The Megatron-LM paper's: every token")
    assert finetuned["checkpoint"] == "iteration 500000, megatron-core, sha256:aa"
    assert (finetuned["data"], finetuned["tokenizer"]) == ("lambada_test.jsonl, sha256:dd", "sha256:tt")
    assert (finetuned["layout"], finetuned["computed in"]) == ("tp 2 x dp 1", "float32 on cpu")
    assert finetuned["speed"] == "1,234 tokens/s, 10.5 s"
    assert finetuned["command"] == "mpeval evaluate runs/gpt-345m --task lambada"
    assert ensemble["checkpoint"] == "sha256:aa"
    assert "iteration" not in dict(next(row for row in page.rows if "iteration" not in dict(row)["Model"]))["Model"]


def test_an_unknown_benchmark_has_a_place_too() -> None:
    page = Page(page_of(published(task="boolq", title="BoolQ", protocol="boolq/paper", items={})))
    assert [cell for _, cell in page.rows[0]][:3] == ["", "BoolQ", "test"]
    assert page.details[0]["protocol"] == "boolq/paper"
    assert not {"n", "interval"} & page.details[0].keys()


def test_parameters_are_in_thousands_millions_or_billions() -> None:
    sizes = {20_480: "20.5K", 4_273_664: "4.3M", 354_871_296: "354.9M", 8.3e9: "8.3B", 530e9: "530B"}
    for parameters, text in sizes.items():
        (row,) = Page(page_of(published(parameters=parameters))).rows
        assert dict(row)["Parameters"] == text


# ---- charts ----


def drawn(*numbers: Record | Reported) -> list[str]:
    """Return the captions of what is drawn, up to the first comma or colon."""
    return [re.split("[,:;]", figure.caption)[0] for _, figures in charts(boards(numbers)) for figure in figures]


def test_every_kind_of_chart_is_drawn_where_there_is_enough_for_it() -> None:
    captions = drawn(*full("x"))
    assert captions == [
        "Score over parameters",
        "State of the art over time",
        "95 % intervals by rank",
        "Middle school against high school questions",
        "Learning curve",
    ]
    assert drawn(record(), record(0.5, digest="sha256:b")) == []
    assert drawn(*[published(name=str(one), items={}, parameters=None, date="") for one in range(9)]) == []


def test_a_learning_curve_needs_one_model_at_several_iterations() -> None:
    assert "Learning curve" in drawn(*sweep(flags=["window-256"]))
    assert "Learning curve" not in drawn(*[record(digest=str(one), name=str(one), iteration=one) for one in range(5)])


def test_unranked_numbers_are_never_the_state_of_the_art() -> None:
    dates = {"created_at": "2027-01-02T03:04:05Z"}
    numbers = [published(str(value), date=f"2019-0{value - 59}-17") for value in (60, 61, 62)]
    flagged = record(0.99, flags=["partial"], **dates)
    (_, plain), (_, more) = (charts(boards(found))[0] for found in (numbers, [*numbers, flagged]))
    assert [figure.svg for figure in plain] == [figure.svg for figure in more]
    ranked = charts(boards([*numbers, flagged.model_copy(update={"flags": []})]))[0][1]
    assert ranked[0].svg != plain[0].svg


@pytest.mark.parametrize("text", ["model", *NAMES])
def test_pictures_are_of_the_page(text: str) -> None:
    for _, figures in charts(boards(full(text))):
        for figure in figures:
            root = ElementTree.fromstring(figure.svg.replace("\x07", ""))
            assert root.tag == "svg"
            assert root.attrib["role"] == "img"
            assert "66.51 %" in root.attrib["aria-label"] or "over training" in root.attrib["aria-label"]
            tags = {element.tag for element in root.iter()}
            assert tags <= {"svg", "g", "path", "use", "defs", "text"}
            assert any(element.attrib.get("fill") == "currentColor" for element in root.iter("text"))
            colours = {element.attrib.get(key, "") for element in root.iter() for key in ("fill", "stroke")}
            assert colours <= {"", "none", "currentColor", "#0072b2", "#d55e00", "#009e73", "#cc79a7"}


def test_measured_marks_are_filled_and_reported_ones_hollow() -> None:
    theirs = [published(str(60 + one), name=str(one), parameters=1e6 * (1 + one)) for one in range(3)]
    mine = [record(0.6, name=str(one), digest=str(one), parameters=10**6 * (1 + one)) for one in range(3)]
    for numbers, colour, filled in ((mine, "#0072b2", True), (theirs, "#d55e00", False)):
        svg = charts(boards(numbers))[0][1][0].svg
        marks = [element for element in ElementTree.fromstring(svg).iter("use") if element.get("stroke") == colour]
        assert len(marks) == 3
        assert {element.get("fill") == colour for element in marks} == {filled}


def test_charts_are_of_the_largest_boards_where_there_are_too_many() -> None:
    numbers = [
        published(str(50 + one), protocol=f"a/{board:03}", name=str(one), parameters=None, date="")
        for board in range(MOST_CHARTS + 2)
        for one in range(FEWEST + (board == MOST_CHARTS + 1))
    ]
    found = charts(boards(numbers))
    assert len(found) == MOST_CHARTS
    assert found[-1][0].protocol == f"a/{MOST_CHARTS + 1:03}"


def test_a_picture_takes_the_colours_and_ids_of_the_page() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9" id="s">'
        "<metadata>x</metadata><defs><style>*{}</style><clipPath id='c'/><path id='m' d='M 1.23456 0'/></defs>"
        "<g id='axes_1' clip-path='url(#c)'><use xlink:href='#m' style='fill: #010203; stroke: #ff0000'/>"
        "<text style=\"font: 9.5px 'X'; text-anchor: middle; stroke: #040506\">a</text></g></svg>"
    )
    assert inlined(svg, "p", 'say "so"\n <b>') == (
        '<svg viewBox="0 0 9 9" role="img" aria-label="say &quot;so&quot; &lt;b&gt;"><defs>'
        '<path d="M 1.23 0" id="p-0" /></defs><g><use href="#p-0" fill="currentColor" stroke="#ff0000" />'
        '<text font-size="9.5" text-anchor="middle" stroke="currentColor" stroke-opacity="0.15">a</text></g></svg>'
    )


# ---- many ----


def test_five_thousand_numbers_are_one_page() -> None:
    numbers = [record((one % 1000) / 1000, digest=f"sha256:{one}", name=f"model {one % 50}") for one in range(5000)]
    page = page_of(*numbers)
    assert page.count('class="number"') == page.count('class="more"') == 5000
    assert len(page) < 8_000_000


# ---- served ----


def answer(path: str, *, host: str | None = None, method: str = "GET") -> tuple[int, Sequence[tuple[str, str]], bytes]:
    """Return status, headers and body that a server of the page `<p>é` answers."""
    with server("<p>é", 0) as bound:
        thread = threading.Thread(target=bound.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert bound.server_address[0] == "127.0.0.1"
            connection = http.client.HTTPConnection("127.0.0.1", bound.server_port, timeout=20)
            connection.request(method, path, headers={"Host": host} if host else {})
            got = connection.getresponse()
            return got.status, got.getheaders(), got.read()
        finally:
            bound.shutdown()
            thread.join()


def test_the_page_is_served_from_memory() -> None:
    for path in ("/", "/index.html", "/?x=1"):
        status, headers, body = answer(path)
        assert (status, body) == (200, "<p>é".encode())
        assert ("Content-Type", "text/html; charset=utf-8") in headers
    assert answer("/", method="HEAD")[::2] == (200, b"")


@pytest.mark.parametrize(
    "path", ["/README.md", "/../etc/passwd", "//etc/passwd", "/%2e%2e/", "/index.html/x", "/.git/config"]
)
def test_nothing_else_is_served(path: str) -> None:
    assert answer(path)[0] == 404


def test_only_who_asks_for_this_machine_is_answered() -> None:
    assert answer("/", host="example.org")[0] == 421
    assert answer("/", host="127.0.0.1:1")[0] == 421


def test_browsers_leave_out_the_usual_port() -> None:
    assert "127.0.0.1" in _names(("127.0.0.1", 80))
    assert _names(("127.0.0.1", 8080)) == {"127.0.0.1:8080", "localhost:8080"}


@pytest.mark.parametrize(("error", "said"), [(ConnectionResetError, ""), (ValueError, "ValueError")])
def test_a_browser_that_goes_away_is_not_worth_a_word(
    error: type[Exception], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with server("", 0) as bound:
        try:
            raise error
        except error:
            bound.handle_error(None, ("127.0.0.1", 1))  # type: ignore[arg-type]
    found = capsys.readouterr().err
    assert said in found
    assert bool(found) is bool(said)


def test_a_taken_port_is_refused() -> None:
    with server("", 0) as bound, pytest.raises(UsageError, match="cannot serve at 127") as raised:
        server("", bound.server_port)
    assert "--port" in raised.value.hint
