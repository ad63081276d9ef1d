"""Hostile names come through every renderer as text, and what is parsed back is what went in."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from boarding import measured, paper, published

from mpeval.leaderboard.boards import Board, boards
from mpeval.leaderboard.exports import delimited, eee, harness, hub, latex, papers, table_json
from mpeval.leaderboard.exports.latex_text import ACCENTS, NAMED, SPECIAL, escape
from mpeval.leaderboard.markdown import BEGIN, END, page, with_boards
from mpeval.leaderboard.reported import ReportedModel
from mpeval.leaderboard.text import TURNING, one_line

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "pipe": "a | b || c",
    "underscore": "_a_ __b__",
    "percent": "100 % % %",
    "formula": "=cmd|'/C calc'!A0()",
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(A1)",
    "tab": "\t=1",
    "return": "\r=1",
    "feed": "\n=1",
    "wide": "\uff1d1+1",
    "address": "https://example.org/x WWW.example.org ~~x~~ $x$",
    "turned": "abc\u202edcb\u200f\u2067x",
    "long": "x" * 200,
    "newline": "two\nlines\r\nthree",
    "tex": r"\input{/etc/passwd} $x^2$ #1 {} ~ & \\ [x] % ",
    "quotes": "\"a\" 'b' ``c'' --- ?`",
    "accents": "Kādir Ñandú Çelik ﬀ 中文 \U0001f600 αΩ × ≤ ß",
    "marker": f"{BEGIN}\n{END}",
    "path": "../../etc/passwd",
    "yaml": "- !!python/object/apply:os.system ['x']: {a: *b}",
    "document": "---\n...\n# no comment",
    "separator": "a\u2028b\x85c\x00d\x1b[31m",
    "dot": ".",
}


def hostile_boards(text: str) -> list[Board]:
    """Return boards of a measured and a reported line that have a text wherever a stranger can put one."""
    return boards(
        [
            measured(name=text, command=text, flags=["x " + text], title=text, protocol="p " + text, dtype=text),
            measured(name=text, digest="sha256:b", path=text),
            published(
                *("lambada", text, {"accuracy": "66.51"}, ReportedModel(name=text, family=text, shots=text)),
                items={"accuracy": 5153},
                source=paper(text, title=text, quote=text),
            ),
        ]
    )


@pytest.fixture(params=HOSTILE)
def text(request: pytest.FixtureRequest) -> str:
    return HOSTILE[request.param]


# ---- data: what went in comes out ----


def test_csv_gives_the_names_back(text: str) -> None:
    made = delimited.export(hostile_boards(text)).files["leaderboard.csv"]
    rows = list(csv.DictReader(io.StringIO(made, newline=""), strict=True))
    assert len(rows) == 5
    guarded = "'" + text if text[0] in "=+-@\t\r\n\uff1d" else text
    assert {row["model"] for row in rows} == {guarded}
    assert {row["source"] for row in rows} == {"", guarded}
    begins = ("=", "+", "@", "-", "\t", "\r", "\n", "\uff1d")
    assert not any(cell.startswith(begins) for row in rows for cell in row.values())
    assert all(None not in row and None not in row.values() for row in rows)


def test_json_gives_the_names_back_and_is_ascii(text: str) -> None:
    made = table_json.export(hostile_boards(text)).files["leaderboard.json"]
    assert made.isascii()
    records = [row["record"] for board in json.loads(made)["boards"] for row in board["rows"]]
    assert [record["model"]["name"] for record in records] == [text] * 3


def test_papers_tables_give_the_names_back(text: str) -> None:
    made = papers.export(hostile_boards(text)).files
    assert all(value.isascii() for value in made.values())
    (task,) = json.loads(made["evaluation-tables.json"])
    rows = task["datasets"][0]["sota"]["rows"]
    assert all(row["model_name"].startswith(text) for row in rows)
    assert {row["paper_title"] for row in rows} == {"", text}
    assert len(json.loads(made["evaluation-tables.sidecar.json"])["rows"]) == len(rows)


def test_yaml_gives_the_names_back(text: str) -> None:
    index = hub.export_model_index(hostile_boards(text)).files["model-index.yaml"]
    results = hub.export_eval_results(hostile_boards(text)).files["eval-results.yaml"]
    assert (index + results).isascii()
    (document,) = yaml.safe_load_all(index)
    (entry,) = document["model-index"]
    assert entry["name"] == text
    assert [result["dataset"]["name"] for result in entry["results"]].count(text) == 2
    assert all(item["notes"].startswith(text) for item in yaml.safe_load(results))


def test_every_eval_ever_gives_the_names_back(text: str) -> None:
    files = eee.export(hostile_boards(text)).files
    assert all(re.fullmatch(r"eee/[0-9a-f]{16}\.json", name) for name in files)
    assert {json.loads(value)["model_info"]["name"] for value in files.values()} == {text}
    for value in files.values():
        assert re.fullmatch(r"lambada/[a-z0-9-]*/[0-9a-f]{64}", json.loads(value)["evaluation_id"])


def test_lm_evals_files_give_the_names_back_and_stay_in_their_folder(text: str, tmp_path: Path) -> None:
    files = harness.export(hostile_boards(text)).files
    assert {json.loads(value)["model_name"] for value in files.values()} == {text}
    for name, value in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
        assert path.resolve().is_relative_to(tmp_path / "lm-eval")
        assert len(Path(name).parts) == 3
        assert Path(name).parts[1].isprintable()
        assert not Path(name).parts[1].startswith(".")


# ---- pages: harmless, and of the same shape as with a plain name ----


def test_markdown_keeps_its_shape(text: str) -> None:
    hostile, plain = page(hostile_boards(text)), page(hostile_boards("plain"))
    assert len(hostile.splitlines()) == len(plain.splitlines())
    assert not TURNING.search(hostile)
    assert "<" not in hostile
    assert not re.search(r"www\.|(?<!\\)(://|[~$])", hostile, re.IGNORECASE)
    for ours, theirs in zip(hostile.splitlines(), plain.splitlines(), strict=True):
        assert len(re.split(r"(?<!\\)\|", ours)) == len(re.split(r"(?<!\\)\|", theirs))


def test_markdown_between_markers_can_be_replaced_again(text: str) -> None:
    around = f"a\n{BEGIN}\n{END}\nb\n"
    once = with_boards(around, hostile_boards(text), "x")
    assert with_boards(once, hostile_boards(text), "x") == once
    assert once.count(BEGIN) == once.count(END) == 1


def unescaped(tex: str) -> str:
    """Return the text that LaTeX of ours shows; anything that is neither plain nor escaped fails."""
    named = sorted(
        (made, shown) for shown, made in (*SPECIAL.items(), *NAMED.items()) if made.startswith(("\\", "$", "{"))
    )
    marks = {command: mark for mark, command in ACCENTS.items()}
    shown, at = "", 0
    while at < len(tex):
        found = max(
            (pair for pair in named if tex.startswith(pair[0], at)), key=lambda pair: len(pair[0]), default=None
        )
        accent = re.compile(r"\\([`'^~=u.\"rHvdc])\{").match(tex, at)
        if found:
            shown, at = shown + found[1], at + len(found[0])
        elif accent:
            inner = balanced(tex, accent.end() - 1)
            shown += unescaped(inner) + marks[accent[1]]
            at = accent.end() + len(inner) + 1
        elif tex.startswith("{}", at):
            at += 2
        else:
            assert tex[at] not in '\\{}$&#^_%<>|"', tex[at:]
            shown, at = shown + tex[at], at + 1
    return shown


def balanced(tex: str, start: int) -> str:
    """Return what stands between the brace at `start` and its partner."""
    depth = 0
    for at in range(start, len(tex)):
        if tex[at] == "\\":
            continue
        escaped = at > 0 and tex[at - 1] == "\\"
        depth += 0 if escaped else (tex[at] == "{") - (tex[at] == "}")
        if depth == 0:
            return tex[start + 1 : at]
    raise AssertionError(f"no partner of the brace in {tex[start:]}")


def shown_by_tex(text: str) -> str:
    """Return what a text is shown as: one line, and the number of each letter that plain LaTeX has not."""
    import unicodedata

    return "".join(
        character
        if character.isascii() or character in NAMED or any(mark in ACCENTS for mark in marks)
        else f"[U+{ord(character):04X}]"
        for character in unicodedata.normalize("NFC", one_line(text))
        for marks in [unicodedata.normalize("NFD", character)[1:]]
    )


def test_latex_shows_the_name_and_nothing_of_it_is_a_command(text: str) -> None:
    import unicodedata

    made = escape(text)
    assert made.isascii()
    assert made.isprintable()
    plain = str.maketrans(
        {"\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u2013": "--", "\u2014": "---"}
    )
    assert unicodedata.normalize("NFC", unescaped(made)) == shown_by_tex(text).translate(plain)


def test_the_check_of_latex_finds_what_is_not_escaped() -> None:
    for text in ("a & b", "50 %", "x_1", r"\input{x}", "{", "#", "$x$"):
        with pytest.raises(AssertionError):
            unescaped(text)


@pytest.mark.parametrize("siunitx", [False, True])
def test_latex_tables_keep_their_shape(siunitx: bool, text: str) -> None:
    hostile, plain = (
        latex.export(hostile_boards(name), siunitx=siunitx).files["leaderboard.tex"] for name in (text, "plain")
    )
    assert hostile.isascii()
    assert len(hostile.splitlines()) == len(plain.splitlines())
    for ours, theirs in zip(hostile.splitlines(), plain.splitlines(), strict=True):
        assert len(re.findall(r"(?<!\\)&", ours)) == len(re.findall(r"(?<!\\)&", theirs))
        assert len(re.findall(r"(?<!\\)[{]", ours)) == len(re.findall(r"(?<!\\)[}]", ours))
        assert len(re.findall(r"(?<!\\)%", ours)) == len(re.findall(r"(?<!\\)%", theirs))
    labels = re.findall(r"\\label\{(.*?)\}", hostile)
    assert all(re.fullmatch(r"tab:[a-z0-9-]+", label) for label in labels)
    assert len(set(labels)) == len(labels) == 3


ENGINES = {
    "pdflatex": ["-interaction=nonstopmode", "-halt-on-error", "-draftmode"],
    "lualatex": ["-interaction=nonstopmode", "-halt-on-error", "-draftmode"],
    "xelatex": ["-interaction=nonstopmode", "-halt-on-error", "-no-pdf"],
    "tectonic": ["--only-cached"],
}
"""Each with options by which it stops at the first error and needs no font but the metrics, and no network."""
ENGINE = next(filter(shutil.which, ENGINES), "")


@pytest.mark.skipif(not ENGINE, reason="there is no TeX engine here")
@pytest.mark.parametrize("siunitx", [False, True])
def test_a_tex_engine_compiles_the_tables(siunitx: bool, tmp_path: Path) -> None:
    lines = [board for text in HOSTILE.values() for board in hostile_boards(text)]
    (tmp_path / "leaderboard.tex").write_text(latex.export(lines, siunitx=siunitx).files["leaderboard.tex"])
    packages = r"\usepackage{booktabs}" + (r"\usepackage{siunitx}" if siunitx else "")
    head = rf"\documentclass{{article}}{packages}\extrafloats{{100}}"
    (tmp_path / "main.tex").write_text(head + r"\begin{document}\input{leaderboard}\end{document}")
    line = [ENGINE, *ENGINES[ENGINE], "main.tex"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, timeout=200, check=False)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    assert not re.search(r"^!|Missing character", said, re.MULTILINE)
