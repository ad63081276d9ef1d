"""The model `mpeval` as lm-eval's own code expects a backend to be: registry, pairs, windows, stop strings, caches."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from harnessing import CONFIG, hf_of, loaded, make_gpt

from mpeval.errors import DataError, MpevalError, OutputError, TokenizerError, UsageError
from mpeval.generate import generate
from mpeval.harness.answers import FILE, Answers, read_answers
from mpeval.harness.pairs import encode_pairs, rolling_windows
from mpeval.harness.settings import Continuation
from mpeval.tokenizer import Tokenizer, find_tokenizer, special_tokens

pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval warns about its own dependencies
PAIRS = [
    ("The lighthouse keeper climbed the stairs", " every evening"),
    ("a context that ends with spaces   ", "word"),
    ("and with a line break \n", "word"),
    ("", "an empty context"),
    ("", " begun with a space"),
    ("ab", "c"),  # the tokens of the two together are not those of each
    ("Ünïcödé 日本", "語 🙂"),
    ("The lighthouse keeper climbed the stairs", " again"),
]
TEXTS = ["", "x", "The lighthouse keeper climbed. " * 3, "A longer text, of several windows. " * 120]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt(tmp_path_factory.mktemp("model") / "gpt")


@pytest.fixture(scope="module")
def text(root: Path) -> Tokenizer:
    return find_tokenizer(root, [])


@pytest.fixture(scope="module")
def lm(root: Path) -> Any:
    """The model, made as lm-eval makes it."""
    from lm_eval.api.registry import get_model

    import mpeval.harness  # noqa: F401

    arguments = f"checkpoint={root},dtype=float32,tokenizer={root},batch_tokens=400,tp=1"
    return get_model("mpeval").create_from_arg_string(
        arguments, {"batch_size": 1, "max_batch_size": None, "device": None}
    )


@pytest.fixture(scope="module")
def hf(root: Path) -> Any:
    return hf_of(root)


def asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=("made", number, 1))
        for number, args in enumerate(arguments)
    ]


def test_the_registry_has_it(lm: Any) -> None:
    from lm_eval.api.model import LM, TemplateLM
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    from mpeval.harness import CheckpointModel

    assert get_model("mpeval") is CheckpointModel
    assert isinstance(lm, LM)
    assert isinstance(lm, TemplateLM)
    assert not isinstance(lm, HFLM)
    assert (lm.rank, lm.world_size, str(lm.device)) == (0, 1, "cpu")
    assert (lm.max_length, lm.max_gen_toks) == (CONFIG.context, CONFIG.context // 2)
    assert lm.tok_decode(lm.tok_encode("any text")) == "any text"
    assert lm.tok_decode([lm.eot_token_id]) == "<|endoftext|>"
    assert lm.tokenizer_name.startswith("sha256-")


def test_objects_make_it_too(root: Path) -> None:
    from mpeval.harness import CheckpointModel

    made = CheckpointModel.create_from_arg_obj({"checkpoint": root, "max_gen_toks": 5}, {"device": "cpu"})
    assert made.max_gen_toks == 5


def test_pairs_are_divided_as_the_base_class_divides_them(lm: Any, text: Tokenizer) -> None:
    from lm_eval.api.model import TemplateLM

    caught: list[Any] = []

    class Plain(type(lm)):  # type: ignore[misc]
        """The base class's own way, one text at a time."""

        def __init__(self) -> None:
            self.__dict__.update(lm.__dict__)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            caught.extend((context, target) for _, context, target in requests)

    TemplateLM.loglikelihood(Plain(), asked("loglikelihood", PAIRS), disable_tqdm=True)
    assert encode_pairs(text, PAIRS, lm.prefix_token_id) == caught
    assert encode_pairs(text, [("  ", "word")], 0)[0] == ([0], text.encode("  word"))
    end = text.encode("<|endoftext|>")
    assert encode_pairs(text, [("", "<|endoftext|>word")], end[0])[0] == (end, text.encode("word"))
    for context, continuation in (("a context", ""), ("one word and an", "other")):  # of the latter one token is left
        with pytest.raises(DataError, match=f"nothing to score in the continuation '{continuation}' of '{context}'"):
            encode_pairs(text, [(context, continuation)], 0)


def test_windows_are_those_of_lm_eval() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for count in (0, 1, 3, 4, 5, 8, 9, 23):
        for length in (1, 4, 30):
            ids = list(range(100, 100 + count))
            theirs = get_rolling_token_windows(ids, prefix_token=7, max_seq_len=length, context_len=1)
            assert list(rolling_windows(ids, 7, length)) == [make_disjoint_window(pair) for pair in theirs]


def test_log_probabilities_equal_the_hf_backends_in_order(lm: Any, hf: Any) -> None:
    pairs = PAIRS.copy()
    random.Random(0).shuffle(pairs)
    ours = lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    theirs = hf.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert [answer[0] for answer in ours] == pytest.approx([answer[0] for answer in theirs], abs=2e-4)
    assert [answer[1] for answer in ours] == [answer[1] for answer in theirs]
    assert {type(value) for answer in ours for value in answer} == {float, bool}


def test_whole_texts_equal_the_hf_backends(lm: Any, hf: Any) -> None:
    requests = [(text,) for text in TEXTS]
    ours = lm.loglikelihood_rolling(asked("loglikelihood_rolling", requests), disable_tqdm=True)
    theirs = hf.loglikelihood_rolling(asked("loglikelihood_rolling", requests), disable_tqdm=True)
    assert ours == pytest.approx(theirs, rel=1e-5, abs=2e-4)
    assert len(lm.tok_encode(TEXTS[-1])) > 2 * CONFIG.context


GENERATIONS: list[tuple[str, dict[str, Any]]] = [
    ("The lighthouse keeper", {"until": ["\n"], "max_gen_toks": 12}),
    ("", {"until": [], "max_gen_toks": 6, "do_sample": False}),
    ("He said that", {"until": "e", "max_new_tokens": 9, "temperature": 0.0}),
    ("A longer text, of several windows. " * 60, {"until": ["zzz"], "max_gen_toks": 10}),
    ("The lighthouse keeper climbed the narrow stairs", {"until": [" the", "."], "max_gen_toks": 12}),
]


def test_texts_go_on_as_with_the_hf_backend(lm: Any, hf: Any) -> None:
    requests = [(context, dict(settings)) for context, settings in GENERATIONS if context]
    ours = lm.generate_until(asked("generate_until", requests), disable_tqdm=True)
    theirs = hf.generate_until(asked("generate_until", requests), disable_tqdm=True)
    assert ours == theirs
    assert len(set(ours)) == len(ours)
    [empty] = lm.generate_until(asked("generate_until", [GENERATIONS[1]]), disable_tqdm=True)
    made = generate(lm.model, [[lm.prefix_token_id]], limit=6, end=lm.eot_token_id)
    assert empty == lm.tok_decode(made[0].ids)


def test_random_texts_are_repeatable_and_differ_when_they_are_asked_for_again(lm: Any) -> None:
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 8, "until": []}
    requests = asked("generate_until", [("The lighthouse keeper", settings)]) * 3
    first = lm.generate_until(requests, disable_tqdm=True)
    assert len(set(first)) == 3
    assert lm.generate_until(requests, disable_tqdm=True) == first
    seeded = asked("generate_until", [("The lighthouse keeper", {**settings, "seed": 5})]) * 3
    assert lm.generate_until(seeded, disable_tqdm=True) != first


def test_documents_that_do_not_fit_are_counted_and_reported_once(
    root: Path, text: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    from mpeval.harness import LanguageModel

    lm = LanguageModel(loaded(root), text, shown=False)
    long = "A longer text, of several windows. " * 60
    cut = len(text.encode(long + " One")) - 1 - CONFIG.context
    with caplog.at_level(logging.WARNING, logger="mpeval.harness"):
        lm.loglikelihood(asked("loglikelihood", [(long, " One"), ("short", " One"), (long, " Two")]))
    assert lm.cut == {("made", 0): cut, ("made", 2): cut}
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("2 documents are scored without the left of their context: it is longer than the model's")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mpeval.harness"):
        lm.generate_until(asked("generate_until", [("short", {}), (long, {"max_gen_toks": 2})] * 2))
    assert len(caplog.records) == 1
    assert lm.cut["made", 1] == lm.cut["made", 3] == len(text.encode(long)) + 2 - CONFIG.context


def test_answers_go_through_lm_evals_cache(lm: Any, tmp_path: Path) -> None:
    from lm_eval.api.model import CacheHook, CachingLM

    requests = {
        "loglikelihood": PAIRS,
        "loglikelihood_rolling": [(text,) for text in TEXTS[1:3]],
        "generate_until": GENERATIONS[:3],
    }
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    kept = {}
    for kind, arguments in requests.items():
        expected = getattr(lm, kind)(asked(kind, arguments))  # fills the cache by its hook
        kept[kind] = len(caching.dbdict)
        caching.lm = Answerless()
        assert getattr(caching, kind)(asked(kind, arguments)) == expected
    assert kept == {"loglikelihood": 8, "loglikelihood_rolling": 10, "generate_until": 13}
    lm.set_cache_hook(CacheHook(None))


def test_answers_on_disk_are_found_again(tmp_path: Path) -> None:
    first, second = (tmp_path / FILE.format(number) for number in ("000", "012"))
    Answers(None, first).add({"a": [-1.5, True], "b": "text"})
    Answers(None, second).add({"c": 0.25})
    with second.open("ab") as file:
        file.write(b'["d", [-3')
    known = read_answers(tmp_path)
    assert known == {"a": [-1.5, True], "b": "text", "c": 0.25}
    again = Answers(known, second)
    assert again.missing(["a", "d", "d", "e", "c"]) == [1, 3]
    again.add({"d": 1})
    assert again.missing(["d"]) == []
    assert again.earlier == {"a", "b", "c"}
    assert read_answers(tmp_path) == {**known, "d": 1}
    second.write_text('["a", 1]\n{"a": \n["b", 2]\n')
    with pytest.raises(OutputError, match="line 2 is damaged"):
        read_answers(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        Answers(None, first / "file").add({"a": 1})
    elsewhere = tmp_path / "new" / "file"
    Answers(None, elsewhere, second).add({"e": 2})
    assert elsewhere.read_text() == '["e", 2]\n'


class Answerless:
    """A model that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        def never(requests: list[Any]) -> Any:
            raise AssertionError(f"{len(requests)} requests came to {name}")

        return never


# ---- settings ----

SETTINGS: list[dict[str, Any]] = [
    {},
    {"until": "\n"},
    {"until": ["a", "b"], "max_gen_toks": 7, "max_new_tokens": 3},
    {"max_tokens": 4, "temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "do_sample": False, "max_completion_tokens": 9},
    {"temperature": 0.5, "do_sample": True, "top_p": 0.9, "top_k": 4, "num_beams": 1},
]


@pytest.mark.parametrize("given", SETTINGS, ids=json.dumps)
def test_settings_mean_what_they_mean_to_lm_eval(given: dict[str, Any]) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    theirs = normalize_gen_kwargs(given, 50)
    ours = Continuation.of(given, 50, 3)
    assert (list(ours.until), ours.limit) == (theirs["until"], theirs["max_gen_toks"])
    assert (ours.sampling is not None) == theirs["do_sample"]
    if ours.sampling:
        assert ours.sampling.temperature == theirs["temperature"]
        assert (ours.sampling.top_p, ours.sampling.top_k) == (given.get("top_p", 1.0), given.get("top_k", 0))
        assert ours.sampling.seed == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 4}, "`num_beams=4`, which is not done"),
        ({"min_p": 0.1}, "`min_p=0.1`"),
        ({"do_sample": True}, "`temperature=0.0` cannot be sampled with"),
        ({"max_gen_toks": 0}, "0 new tokens"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Continuation.of(given, 50, 3)


def test_texts_end_where_lm_eval_ends_them(text: Tokenizer) -> None:
    from lm_eval.models.utils import postprocess_generated_text

    for made in ("one. two\nthree", "no end", "", ".", "a\n.b"):
        for until in (["\n"], [".", "\n"], ["\n", "."], ["two", "e"], []):
            assert Continuation.ended(made, until) == postprocess_generated_text(made, until, None)
    ids = text.encode("a word, then 🙂 the end")
    stops = Continuation.stopper(text, ["🙂 the"])
    first = next(count for count in range(len(ids) + 1) if stops(ids[:count]))
    assert text.decode(ids[:first]).endswith("🙂 the")


def test_more_new_tokens_than_the_context_has_are_refused(lm: Any) -> None:
    requests = asked("generate_until", [("x", {"max_gen_toks": CONFIG.context})])
    with pytest.raises(DataError, match=f"`made` asks for {CONFIG.context} new tokens"):
        lm.generate_until(requests)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        ("dtype=float32", "needs a checkpoint", "--model_args checkpoint=DIR"),
        ("checkpoint={root},dtyp=float32", "takes no `dtyp=float32`", "did you mean `dtype`?"),
        ("checkpoint={root},dtype=float8", "`dtype=float8` is unknown", "float32"),
        ("checkpoint={root},batch_size=8", "`batch_size=8`: batches are made by tokens", "batch_tokens=N"),
        ("checkpoint={root},device=tpu", "`device=tpu` is unknown", "`cuda`"),
        ("checkpoint={root},tp=2", "`tp=2,dp=1` needs ranks that know one another", "mpeval harness run"),
        ("checkpoint={root}/none", "no such checkpoint", "iter_0000001"),
    ],
)
def test_mistakes_in_its_arguments_are_named(arguments: str, said: str, hint: str, root: Path) -> None:
    from mpeval.harness import CheckpointModel

    with pytest.raises(MpevalError) as caught:
        CheckpointModel.create_from_arg_string(arguments.format(root=root), {})
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_chat_templates_are_refused(lm: Any) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "?"}])


def test_other_ranks_than_asked_for_are_refused(root: Path) -> None:
    from mpeval.harness import CheckpointModel
    from mpeval.harness.checkpoint import on_ranks
    from mpeval.parallel.group import Group

    with on_ranks(Group.single()), pytest.raises(UsageError, match="`dp=2` was asked for, this run has 1"):
        CheckpointModel(checkpoint=str(root), dp=2)


# ---- tokenizers with ends of their own ----


def test_the_ends_of_texts_are_what_the_settings_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((root / "tokenizer.json").read_text())
    assert special_tokens(find_tokenizer(tmp_path, [])) == (0, 0)
    settings = {"eos_token": {"content": "the"}, "bos_token": "a"}
    tokenizer = find_tokenizer(tmp_path, [])
    named = tuple(tokenizer.backend.token_to_id(piece) for piece in ("a", "the"))
    assert None not in named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert special_tokens(tokenizer) == named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "the", "bos_token": None}))
    assert special_tokens(tokenizer) == (named[1], named[1])
    vocab = json.loads((root / "tokenizer.json").read_text().replace("<|endoftext|>", "<|over|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocab))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerError, match=r"no `<\|endoftext\|>` token"):
        special_tokens(find_tokenizer(tmp_path, []))
