"""The package as a whole: its public names, who may import whom, how long a module is, and what a wheel holds."""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpeval

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = Path(mpeval.__file__).resolve().parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
PUBLIC = [
    "Group",
    "IndexedDataset",
    "ModelConfig",
    "MpevalError",
    "Request",
    "Response",
    "ShardedCheckpoint",
    "__version__",
    "load_model",
    "open_checkpoint",
    "score",
]
NO_TORCH = ("torch", "mpeval.models", "mpeval.checkpoint", "mpeval.parallel", "mpeval.scoring", "mpeval.evaluate")
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "errors.py": ("torch", "mpeval"),
    "config.py": NO_TORCH,
    "items.py": NO_TORCH,
    "prefixes.py": NO_TORCH,
    "score_cache.py": NO_TORCH,
    "data.py": NO_TORCH,
    "tokenizer.py": NO_TORCH,
    "journal.py": NO_TORCH,
    "folders.py": NO_TORCH,
    "corpus/": NO_TORCH,
    "recipe.py": NO_TORCH,
    "plot.py": NO_TORCH,
    "tasks/": NO_TORCH,
    "leaderboard/": NO_TORCH,
    "report.py": NO_TORCH,
    "results.py": NO_TORCH,
    "statistics.py": NO_TORCH,
    "questions/": NO_TORCH,
    "predictions/": NO_TORCH,
    "finetuned.py": NO_TORCH,
    "finetune_recipe.py": NO_TORCH,
    "parallel/": ("mpeval.models", "mpeval.checkpoint", "mpeval.scoring", "mpeval.evaluate", "mpeval.tasks"),
    "models/": ("mpeval.checkpoint", "mpeval.scoring", "mpeval.evaluate", "mpeval.tasks"),
    "checkpoint/": ("mpeval.scoring", "mpeval.evaluate", "mpeval.tasks", "mpeval.tokenizer"),
    "train/": ("mpeval.tasks", "mpeval.evaluate", "mpeval.pretrain", "mpeval.finetune", "mpeval.launch"),
    "scoring.py": ("mpeval.checkpoint", "mpeval.tasks", "mpeval.evaluate"),
    "heads.py": ("mpeval.checkpoint", "mpeval.tasks", "mpeval.evaluate", "mpeval.scoring"),
    "rounds.py": ("mpeval.checkpoint", "mpeval.evaluate", "mpeval.train"),
    "generate.py": ("mpeval.checkpoint", "mpeval.tasks", "mpeval.evaluate", "lm_eval"),
    "harness/": ("mpeval.tasks", "mpeval.evaluate", "mpeval.train"),
    "harness_results.py": NO_TORCH,
    "harness_evaluate.py": ("mpeval.train", "mpeval.finetune", "mpeval.running", "mpeval.tasks"),
    "evaluate.py": (
        "mpeval.harness",
        "mpeval.harness_evaluate",
        "lm_eval",
        "mpeval.train",
        "mpeval.finetune",
        "mpeval.running",
    ),
    "": ("mpeval.cli",),
}
"""Which modules (a file, or a folder's) may not import what, in type-checking blocks either."""
EXCEPT = {"__main__.py": ("mpeval.cli",)}


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module that a tree imports anywhere, and `module.name` for each name it takes from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted_names(tree: ast.AST) -> Iterator[str]:
    """Yield every `a.b.c` that stands in a tree."""
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name):
            yield ".".join([inner.id, *reversed(parts)])


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def code_lines(path: Path) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def test_the_public_names_are_these() -> None:
    assert mpeval.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(mpeval, name)
    assert value is getattr(importlib.import_module("mpeval"), name)
    assert value.__class__ is str or value.__name__ == name


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="`mpeval` has no attribute `nothing`"):
        mpeval.nothing  # noqa: B018


def test_the_version_is_the_projects() -> None:
    from importlib.metadata import version

    assert mpeval.__version__ == version("mpeval")


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, mpeval; print(sorted({'torch', 'numpy', 'datasets', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("place", FORBIDDEN)
def test_modules_import_only_in_one_direction(place: str) -> None:
    chosen = [module for module in MODULES if module == place or (place[-1:] in {"", "/"} and module.startswith(place))]
    assert chosen
    wrong = [
        f"{module} imports {name}"
        for module in chosen
        for name in imported(tree_of(module))
        for package in FORBIDDEN[place]
        if below(name, package) and package not in EXCEPT.get(module, ())
    ]
    assert wrong == []


def test_the_direction_test_sees_imports_wherever_they_stand() -> None:
    text = "def f():\n    from torch import nn\nif TYPE_CHECKING:\n    import mpeval.models.gpt\n"
    assert sorted(imported(ast.parse(text))) == ["mpeval.models.gpt", "torch.nn"]
    assert "torch.distributed.barrier" in dotted_names(ast.parse("torch.distributed.barrier()"))
    assert below("torch.nn", "torch")
    assert not below("torchvision", "torch")


def test_only_parallel_and_launch_know_of_torch_distributed() -> None:
    found = {
        module
        for module in MODULES
        for name in (*imported(tree_of(module)), *dotted_names(tree_of(module)))
        if below(name, "torch.distributed") or below(name, "torch._C._distributed_c10d")
    }
    assert found
    # dist_write.py writes the index of PyTorch DCP, whose classes live there; it sends nothing
    allowed = {"launch.py", "checkpoint/dist_write.py"}
    assert {module for module in found if not module.startswith("parallel/")} == allowed


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("rich", {"report.py"}),
        ("datasets", {"corpus/readers.py", "data.py"}),
        ("jinja2", {"leaderboard/page.py"}),
        ("yaml", {"leaderboard/exports/card.py", "leaderboard/exports/hub.py", "leaderboard/importing/documents.py"}),
        ("huggingface_hub", {"leaderboard/exports/push.py", "leaderboard/importing/hub.py"}),
        ("tokenizers", {"tokenizer.py"}),
        ("matplotlib", {"plot.py", "leaderboard/charts.py"}),
        ("numba", {"corpus/compiled.py"}),
        (
            "lm_eval",
            {"harness/model.py", "harness/checkpoint.py", "harness/command.py", "harness_evaluate.py"},
        ),
    ],
)
def test_a_library_is_imported_in_one_module(library: str, allowed: set[str]) -> None:
    assert {module for module in MODULES if any(below(name, library) for name in imported(tree_of(module)))} == allowed


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_and_says_what_it_is_for(module: str) -> None:
    assert code_lines(PACKAGE / module) < 300
    assert ast.get_docstring(tree_of(module))


def test_code_lines_are_counted_without_comments_and_docstrings(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""One.\n\nTwo.\n"""\n\n# three\nx = """a\nb"""\n\n\ndef f():  # four\n    """Five."""\n    return x\n'
    )
    assert code_lines(path) == 4


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that `pip wheel` makes of this source tree."""
    if not (REPOSITORY / "pyproject.toml").is_file():
        pytest.skip("there is no source tree to build a wheel from")
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(REPOSITORY)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode and "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("hatchling, which builds the wheel, cannot be installed here: no package index in reach")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_a_wheel_puts_only_mpeval_into_site_packages(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {"mpeval", f"mpeval-{mpeval.__version__}.dist-info"}


def test_a_wheel_holds_every_module_and_template(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    assert {f"mpeval/{module}" for module in MODULES} <= held
    assert {f"mpeval/templates/leaderboard.{kind}" for kind in ("html", "css", "js")} <= held
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in held)


@pytest.mark.parametrize("folder", ["tasks", "checkpoints", "leaderboard"])
def test_a_wheel_holds_the_data_folders(folder: str, wheel: zipfile.ZipFile) -> None:
    prefix = f"mpeval/_data/{folder}/"
    held = {name.removeprefix(prefix): wheel.read(name) for name in wheel.namelist() if name.startswith(prefix)}
    listed = subprocess.run(
        ["git", "ls-files", "--", folder], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split()
    assert held
    for path in listed:
        if (REPOSITORY / path).is_file():
            assert held[path.removeprefix(f"{folder}/")] == (REPOSITORY / path).read_bytes()


def test_a_wheel_without_its_source_tree_finds_its_data(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    program = (
        "import mpeval, sys; from pathlib import Path; from mpeval.tasks.cards import card_names, load_card; "
        "from mpeval.folders import data_folder; assert str(Path(sys.argv[1])) in mpeval.__file__; "
        "print([load_card(name).name for name in card_names()], (data_folder('tasks') / 'samples').is_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site")],
        env={"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['lambada', 'mnli', 'piqa', 'qqp', 'race', 'squad', 'wikitext103'] True"


def test_a_wheel_offers_the_command(wheel: zipfile.ZipFile) -> None:
    entry = wheel.read(f"mpeval-{mpeval.__version__}.dist-info/entry_points.txt").decode()
    assert "mpeval = mpeval.cli:main" in entry
