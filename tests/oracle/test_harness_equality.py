"""`mpeval evaluate --harness` against lm-eval with its own `hf` backend, on real rows and the same random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harnessing import TASKS, ask_hf, make_gpt
from making import run_here
from ranks import run_ranks

import mpeval
from mpeval.evaluate import Options
from mpeval.harness_evaluate import Asked, check_documents, evaluate_tasks, load_tasks, plan
from mpeval.leaderboard.store import read
from mpeval.parallel.group import Group
from mpeval.questions.choice import LETTERS
from mpeval.results import RunResults

NAMES = ["zero_shot", "wikitext", "lambada_generate"]
LIMIT = 5
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about their own dependencies


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt(tmp_path_factory.mktemp("harness") / "gpt")


@pytest.fixture(scope="module")
def theirs(root: Path, shared_data: Path) -> Any:
    return ask_hf(root, NAMES, shared_data, LIMIT)


@pytest.fixture(scope="module")
def ours(root: Path, shared_data: Path) -> Path:
    """The folder of one run of the command, its leaderboard file beside it."""
    output = root.parent / "out"
    command = f"evaluate {root} --harness {','.join(NAMES)} --include-path {TASKS} --data {shared_data} "
    command += f"--limit {LIMIT} --device cpu --quiet --output {output} --record {root.parent / 'store.jsonl'}"
    assert run_here(command) == 0
    return output


def results_in(folder: Path) -> RunResults:
    content = json.loads((folder / "results.json").read_text())
    return RunResults(schema_=content.pop("schema"), **content)


def samples_in(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        found.setdefault(sample["task"].removeprefix("lm-eval/"), []).append(sample)
    return found


def test_every_number_equals_that_of_the_hf_backend(ours: Path, theirs: Any) -> None:
    run = results_in(ours)
    assert [result.task for result in run.results] == [
        *("lambada_openai", "piqa", "race", "wikitext", "lambada_generate", "zero_shot"),
    ]
    compared = 0
    for result in run.results:
        scores = theirs["results"][result.task]
        for metric in result.metrics:
            name, _, chosen = metric.name.partition("/")
            assert metric.value == pytest.approx(scores[f"{name},{chosen or 'none'}"], rel=2e-4), metric.name
            assert metric.direction == ("min" if "per" in name else "max")
            compared += 1
    assert compared == 2 + 2 + 1 + 3 + 1 + 1
    assert {metric.name: metric.unit for result in run.results for metric in result.metrics} == {
        **dict.fromkeys(("acc", "acc_norm", "exact_match/first_word"), "proportion"),
        **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), "perplexity"),
        "bits_per_byte": "number",
    }


def test_every_answer_equals_that_of_the_hf_backend(ours: Path, theirs: Any) -> None:
    found = samples_in(ours)
    assert found.keys() == theirs["samples"].keys()
    cut = {name: sum("cut" in sample for sample in samples) for name, samples in found.items()}
    assert cut == {"lambada_openai": 0, "piqa": 0, "race": cut["race"], "wikitext": 0, "lambada_generate": 0}
    assert cut["race"] >= 3  # long articles: both cut them on the left
    for name, samples in found.items():
        expected = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
        assert [int(sample["id"].partition("/")[0]) for sample in samples] == [sample["doc_id"] for sample in expected]
        for sample, other in zip(samples, expected, strict=True):
            assert (sample["doc_hash"], sample["prompt_hash"]) == (other["doc_hash"], other["prompt_hash"])
            answers = [answer[0] for answer in other["resps"]]
            if name == "lambada_generate":
                assert (sample["generated"], sample["prediction"]) == (answers[0], other["filtered_resps"][0])
            elif name == "wikitext":
                assert sample["log_probability"] == pytest.approx(float(answers[0]), rel=1e-5)
            else:
                logs = sample.get("log_probabilities", [sample.get("log_probability")])
                greedy = sample["greedy"] if isinstance(sample["greedy"], list) else [sample["greedy"]]
                assert logs == pytest.approx([float(answer[0]) for answer in answers], abs=5e-4)
                assert greedy == [str(answer[1]) == "True" for answer in answers]
                assert sample["correct"] == bool(other["acc"])
    assert len({sample["generated"] for sample in found["lambada_generate"]}) > 1


def test_a_result_says_what_of_lm_eval_it_is(ours: Path, theirs: Any, shared_data: Path) -> None:
    import lm_eval

    run = results_in(ours)
    by_task = {result.task: result for result in run.results}
    race, group = by_task["race"], by_task["zero_shot"]
    assert race.protocol == "lm-eval/race"
    assert race.protocol_version == "3.0"
    assert race.harness is not None
    assert (race.harness.version, race.harness.task_version, race.harness.shots) == (lm_eval.__version__, "3.0", 0)
    assert race.flags == [
        f"lm-eval-{lm_eval.__version__}",
        f"config-{race.harness.config.removeprefix('sha256:')[:8]}",
        "partial",
        "truncated",
    ]
    assert (race.n, race.items_total, race.split) == (LIMIT, 1045, "test")
    assert race.data.source.endswith(str(shared_data))
    assert (by_task["lambada_openai"].items_total, by_task["piqa"].items_total) == (5153, 1838)
    assert by_task["wikitext"].items_total == 62
    assert group.harness is not None
    assert group.harness.tasks == ["lambada_openai", "piqa", "race"]
    assert (group.n, group.items_total) == (3 * LIMIT, 5153 + 1838 + 1045)
    assert group.n_correct == round(group.metrics[0].value * group.n)
    records = read(ours.parent / "store.jsonl")
    assert [record.protocol for record in records] == [result.protocol for result in run.results]
    assert [record.harness for record in records] == [result.harness for result in run.results]
    assert not any(record.ranked for record in records if record.task != "wikitext")


def _on_ranks(group: Group, root: Path, tasks: dict[str, Any], data: Path) -> tuple[Any, RunResults]:
    options = Options(checkpoint=root, tasks=(), data=data, limit=LIMIT, output=None, device="cpu", quiet=True)
    checkpoint, tokenizer = plan(options, group.tp.ranks)
    results = evaluate_tasks(checkpoint, tokenizer, tasks, options, group)
    return (group.tp.rank, group.dp.rank), results


@pytest.mark.parametrize(("tp", "dp"), [(2, 1), (1, 2)], ids=["tp 2", "dp 2"])
def test_ranks_change_nothing(tp: int, dp: int, root: Path, ours: Path, shared_data: Path) -> None:
    options = Options(checkpoint=root, tasks=(), data=shared_data, limit=LIMIT)
    tasks = load_tasks(options, Asked(tasks=",".join(NAMES), include=TASKS))
    check_documents(tasks["tasks"], LIMIT, dp)
    expected = results_in(ours).results
    for (_, dp_rank), run in run_ranks(_on_ranks, tp * dp, root, tasks, shared_data, tp=tp):
        if dp_rank:
            assert run.results == []
            continue
        assert [result.protocol for result in run.results] == [result.protocol for result in expected]
        for found, wanted in zip(run.results, expected, strict=True):
            for metric, other in zip(found.metrics, wanted.metrics, strict=True):
                assert metric.value == pytest.approx(other.value, rel=1e-5), found.task
            same = {"n", "n_correct", "items", "items_total", "truncated", "flags", "data", "harness"}
            assert found.model_dump(include=same) == wanted.model_dump(include=same)


def test_the_documents_give_the_stock_tasks_prompts(shared_data: Path) -> None:
    import lm_eval
    import yaml
    from lm_eval.tasks.race import preprocess_race
    from lm_eval.tasks.wikitext import preprocess_wikitext
    from lm_eval.utils import apply_template

    options = Options(checkpoint=Path(), tasks=(), data=shared_data)
    tasks = load_tasks(options, Asked(tasks="lambada_*,piqa,race,wikitext", include=TASKS))["tasks"]
    folder = Path(lm_eval.__file__).parent / "tasks"
    stock = {
        name: yaml.load((folder / path).read_text(), Loader=yaml.BaseLoader)
        for name, path in (("lambada_openai", "lambada/lambada_openai.yaml"), ("piqa", "piqa/piqa.yaml"))
    }
    for doc in list(tasks["lambada_openai"].eval_docs)[::97]:
        for part in ("doc_to_text", "doc_to_target"):
            expected = apply_template(stock["lambada_openai"][part], doc)
            assert getattr(tasks["lambada_openai"], part)(doc) == expected
        assert f" {tasks['lambada_generate'].doc_to_target(doc)}" == expected
    for doc in list(tasks["piqa"].eval_docs)[::97]:
        assert tasks["piqa"].doc_to_text(doc) == apply_template(stock["piqa"]["doc_to_text"], doc)
        assert tasks["piqa"].doc_to_choice(doc) == [doc["sol1"], doc["sol2"]]
        assert tasks["piqa"].doc_to_target(doc) == doc["label"]
    originals = race_documents(shared_data)
    assert len(originals) == len(tasks["race"].eval_docs) == 1045
    for doc, original in zip(tasks["race"].eval_docs, originals, strict=True):
        assert tasks["race"].doc_to_text(doc) == preprocess_race.doc_to_text(original)
        assert tasks["race"].doc_to_choice(doc) == preprocess_race.doc_to_choice(original)
        assert tasks["race"].doc_to_target(doc) == preprocess_race.doc_to_target(original)
    pages = list(tasks["wikitext"].eval_docs)
    text = (shared_data / "wikitext-2-raw/wiki.test.raw").read_text(encoding="utf-8")
    assert "\n".join(page["page"] for page in pages).split() == text.split()
    for page in pages[::7]:
        assert tasks["wikitext"].doc_to_target(page) == preprocess_wikitext.wikitext_detokenizer(page)
        assert tasks["wikitext"].process_results(page, (-3.0,)) == preprocess_wikitext.process_results(page, (-3.0,))


def race_documents(shared_data: Path) -> list[dict[str, Any]]:
    """Return RACE-high's test articles in the form that lm-eval's own task reads."""
    from mpeval.data import load_data
    from mpeval.tasks.cards import load_card

    articles: dict[str, dict[str, Any]] = {}
    for question in load_data(load_card("race"), shared_data).questions:
        if question.group == "high":
            article = articles.setdefault(question.passage, {"article": question.context, "problems": []})
            options, answer = list(question.options), LETTERS[question.answer]
            article["problems"].append({"question": question.question, "answer": answer, "options": options})
    return [{**article, "problems": str(article["problems"])} for article in articles.values()]


def test_a_rank_says_which_data_parallel_one_it_is(root: Path) -> None:
    assert run_ranks(_places, 2, root, tp=2) == [(0, 1, [7.0], [["here"]])] * 2
    assert run_ranks(_places, 2, root, tp=1) == [
        (0, 2, [7.0, 7.0], [["here"], ["here"]]),
        (1, 2, [7.0, 7.0], None),
    ]


def _places(group: Group, root: Path) -> tuple[Any, ...]:
    import torch

    from mpeval.harness import LanguageModel

    model = mpeval.load_model(mpeval.open_checkpoint(root), group)
    lm = LanguageModel(model, plan(Options(checkpoint=root, tasks=()), 1)[1])  # type: ignore[arg-type]
    lm.barrier()
    return lm.rank, lm.world_size, lm.all_gather(torch.tensor(7.0)).tolist(), lm.gather_object(["here"])
