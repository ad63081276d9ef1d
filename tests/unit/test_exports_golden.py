"""The three lines that the Megatron-LM paper had on Papers With Code, byte for byte in every format made for people."""

from __future__ import annotations

from pathlib import Path

from boarding import TITLE, URL, megatron, the_boards

from mpeval.leaderboard.exports import delimited, latex, papers
from mpeval.leaderboard.markdown import page
from mpeval.leaderboard.pages import publish
from mpeval.leaderboard.store import append

MARKDOWN = f"""\
# Leaderboard

Made from records by `mpeval leaderboard publish`: `measured` numbers are mpeval's own,
`reported` ones those of the source they name, their intervals from the items it has.

## LAMBADA test: lambada/megatron

accuracy, higher is better

| rank | kind | model | parameters | value | 95 % interval | n | shots | flags | date | source |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | reported | Megatron-LM 8.3B | 8.3B | 66.51 % | 65.21 % - 67.79 % | 5,153 | 0 | unattainable | 2019-09-17 \
| {TITLE}, Table 3 |

## RACE test: race/megatron

accuracy, higher is better

| rank | kind | model | parameters | value | 95 % interval | accuracy middle | accuracy high | n | shots | flags \
| date | source |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | reported | Megatron-BERT (ensemble) |  | 90.9 % | 90.07 % - 91.67 % | 93.1 % | 90.0 % | 4,934 | finetuned |  \
| 2019-09-17 | {TITLE}, Table 5 |

## WikiText-103 test: wikitext103/megatron

adjusted perplexity, lower is better

| rank | kind | model | parameters | value | 95 % interval | n | shots | flags | date | source |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | reported | Megatron-LM 8.3B | 8.3B | 10.81 |  |  | 0 |  | 2019-09-17 | {TITLE}, Table 3 |

A rank is a range where 95 % intervals overlap, which may hide a difference that a paired test would show.
Rows without one are flagged: they did not measure the whole published benchmark.
"""
FROM_PAPER = f"2019-09-17,{TITLE}"
CSV = "\r\n".join(
    [
        "record_id,kind,task,title,split,protocol,protocol_version,metric,primary,rank,value,unit,direction,stderr,low,"
        "high,interval,printed,n,n_correct,model,family,parameters,iteration,shots,dtype,tp,dp,flags,date,source,"
        "locator,url,note,checkpoint,data,command,mpeval_version,rank_best,rank_worst,exact_low,exact_high",
        "sha256:f70894db22cb6e0e086aada513b4722c4e3bab6a763a9e7cbac915b5a3cf5fa1,reported,lambada,LAMBADA,test,"
        "lambada/megatron,,accuracy,yes,1,0.6651,proportion,max,0.006574624843289687,0.652095198361056,"
        "0.6778588274873781,wilson of printed n,66.51,5153,,Megatron-LM 8.3B,gpt,8300000000.0,,0,,,,unattainable,"
        f"{FROM_PAPER},Table 3,{URL},,,,,,1,1,,",
        "sha256:134cd31c2b4274c909d3dc7295963636cce07f0c03de8db376d9a549a829a495,reported,race,RACE,test,"
        "race/megatron,,accuracy,yes,1,0.909,proportion,max,0.0040945206448257075,0.9006535144351705,"
        "0.9167101116873907,wilson of printed n,90.9,4934,,Megatron-BERT (ensemble),bert,,,finetuned,,,,,"
        f"{FROM_PAPER},Table 5,{URL},,,,,,1,1,,",
        "sha256:134cd31c2b4274c909d3dc7295963636cce07f0c03de8db376d9a549a829a495,reported,race,RACE,test,"
        "race/megatron,,accuracy_middle,no,,0.931,proportion,max,0.006688398886560081,0.9167081777668378,"
        "0.9429920290974996,wilson of printed n,93.1,,,Megatron-BERT (ensemble),bert,,,finetuned,,,,,"
        f"{FROM_PAPER},Table 5,{URL},,,,,,,,,",
        "sha256:134cd31c2b4274c909d3dc7295963636cce07f0c03de8db376d9a549a829a495,reported,race,RACE,test,"
        "race/megatron,,accuracy_high,no,,0.9,proportion,max,0.005072374985461833,0.8896153050835766,"
        "0.909507108911262,wilson of printed n,90.0,,,Megatron-BERT (ensemble),bert,,,finetuned,,,,,"
        f"{FROM_PAPER},Table 5,{URL},,,,,,,,,",
        "sha256:d0a427466eec58a4dfbb056af56f712a13fbf68d8aab4117c504c7f1e19f1559,reported,wikitext103,WikiText-103,"
        "test,wikitext103/megatron,,adjusted_perplexity,yes,1,10.81,perplexity,min,,,,,10.81,,,Megatron-LM 8.3B,gpt,"
        f"8300000000.0,,0,,,,,{FROM_PAPER},Table 3,{URL},,,,,,1,1,,",
        "",
    ]
)
LATEX = rf"""% Made by `mpeval leaderboard publish`; needs \usepackage{{booktabs}}.

\begin{{table}}
  \centering
  \caption{{RACE test: accuracy, higher is better; protocol race/megatron. Bold: every value whose @@
rank may be 1, since no other's 95\,\% interval lies beyond its own.}}
  \label{{tab:race-test-race-megatron-accuracy}}
  \footnotesize\setlength{{\tabcolsep}}{{4pt}}
  \begin{{tabular}}{{rllrlrrrll}}
    \toprule
    rank & model & kind & value & 95 \% interval & accuracy middle & accuracy high & n & shots & source \\
    \midrule
    1 & \textbf{{Megatron-BERT (ensemble)}} & reported & \textbf{{90.9 \%}} & 90.07 \% - 91.67 \% & 93.1 \% & 90.0 \% @@
& 4,934 & finetuned & (1) \\
    \bottomrule
  \end{{tabular}}
  \par\smallskip Sources: (1) {TITLE}, Table 5.\par
\end{{table}}
""".replace("@@\n", "")


def link(title: str, url: str) -> str:
    return f'[\n          {{\n            "title": "{title}",\n            "url": "{url}"\n          }}\n        ]'


def table(name: str, home: str, metrics: str, cells: str, model: str) -> str:
    return f"""\
      {{
        "dataset": "{name}",
        "dataset_citations": [],
        "dataset_links": {link(name, home)},
        "description": "",
        "sota": {{
          "metrics": [
{metrics}
          ],
          "rows": [
            {{
              "code_links": [],
              "metrics": {{
{cells}
              }},
              "model_links": [],
              "model_name": "{model}",
              "paper_date": "2019-09-17",
              "paper_title": "{TITLE}",
              "paper_url": "{URL}",
              "uses_additional_data": false
            }}
          ]
        }},
        "subdatasets": []
      }}"""


def task(name: str, *tables: str) -> str:
    listed = ",\n".join(tables)
    return f"""\
  {{
    "categories": [
      "Natural Language Processing"
    ],
    "datasets": [
{listed}
    ],
    "description": "",
    "source_link": null,
    "subtasks": [],
    "synonyms": [],
    "task": "{name}"
  }}"""


def strings(indent: int, *values: str) -> str:
    return ",\n".join(f"{' ' * indent}{value}" for value in values)


PWC = "\n".join(
    [
        "[",
        task(
            "Language Modelling",
            table(
                *("LAMBADA", "https://zenodo.org/records/2630551", strings(12, '"Accuracy"')),
                *(strings(16, '"Accuracy": "66.51"'), "Megatron-LM 8.3B"),
            ),
            table(
                *("WikiText-103", "https://huggingface.co/datasets/Salesforce/wikitext"),
                strings(12, '"Test perplexity"', '"Number of params"'),
                *(strings(16, '"Number of params": "8300M"', '"Test perplexity": "10.81"'), "Megatron-LM 8.3B"),
            ),
        )
        + ",",
        task(
            "Reading Comprehension",
            table(
                *("RACE", "https://www.cs.cmu.edu/~glai1/data/race/"),
                strings(12, '"Accuracy"', '"Accuracy (Middle)"', '"Accuracy (High)"'),
                strings(16, '"Accuracy": "90.9"', '"Accuracy (High)": "90.0"', '"Accuracy (Middle)": "93.1"'),
                "Megatron-BERT (ensemble)",
            ),
        ),
        "]",
    ]
)


# ---- the target page's three lines, byte for byte ----


def test_the_papers_lines_as_markdown() -> None:
    assert page(the_boards()) == MARKDOWN


def test_the_papers_lines_as_csv() -> None:
    assert delimited.export(the_boards()).files == {"leaderboard.csv": CSV}


def test_the_papers_lines_as_latex() -> None:
    (race,) = (board for board in the_boards() if board.title == "RACE")
    assert latex.export([race]).files == {"leaderboard.tex": LATEX}


def test_the_papers_lines_as_papers_with_code_had_them() -> None:
    made = papers.export(the_boards())
    assert made.files["evaluation-tables.json"] == PWC
    assert made.notes == ()


def test_the_papers_lines_on_the_html_page(tmp_path: Path) -> None:
    append(tmp_path / "s.jsonl", megatron())
    (path,) = publish([tmp_path / "s.jsonl"], tmp_path, ["html"])
    text = path.read_text()
    for said in ("Megatron-LM 8.3B", "66.51", "10.81", "Megatron-BERT (ensemble)", "90.9", "93.1", "90.0"):
        assert said in text
