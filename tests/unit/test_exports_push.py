"""Results go into a model card without harm to what is there, and to a hub that is a stub on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from boarding import measured, megatron

from mpeval.errors import DataError, OutputError, UsageError
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.exports.card import FRONT, merged
from mpeval.leaderboard.exports.hub import model_index
from mpeval.leaderboard.store import append

CARD = """---
license: apache-2.0
language: de
tags: [ä, b]
model-index:
- name: mine
  results:
  - task: {type: text-generation}
    dataset: {type: other, name: Other}
    metrics: [{type: accuracy, value: 0.9}]
---
# A model

text --- more
---
"""


def index_of(card: str) -> dict[str, Any]:
    found = FRONT.match(card)
    assert found
    return yaml.safe_load(found[1])  # type: ignore[no-any-return]


# ---- merging ----


def test_a_card_keeps_its_text_its_metadata_and_its_other_results() -> None:
    new = merged(CARD, model_index(boards([measured(0.45)])))
    data = index_of(new)
    assert new.endswith("---\n# A model\n\ntext --- more\n---\n")
    assert (data["license"], data["language"], data["tags"]) == ("apache-2.0", "de", ["ä", "b"])
    (entry,) = data["model-index"]
    assert entry["name"] == "mine"
    assert [result["dataset"]["name"] for result in entry["results"]] == ["Other", "LAMBADA"]


def test_merging_twice_changes_nothing_and_a_new_value_replaces_the_old() -> None:
    once = merged(CARD, model_index(boards([measured(0.45)])))
    assert merged(once, model_index(boards([measured(0.45)]))) == once
    (entry,) = index_of(merged(once, model_index(boards([measured(0.46)]))))["model-index"]
    found = [{metric["type"]: metric["value"] for metric in result["metrics"]} for result in entry["results"]]
    assert found == [{"accuracy": 0.9}, {"accuracy": 46.0, "perplexity": 12.3456789}]


def test_results_of_another_source_stay_apart() -> None:
    lines = [measured(0.45), measured(0.5, digest="sha256:b")]
    (entry,) = index_of(merged("", model_index(boards(lines))))["model-index"]
    assert len(entry["results"]) == 2


def test_several_models_have_an_entry_each() -> None:
    index = index_of(merged(CARD, model_index(boards(megatron()))))["model-index"]
    assert [entry["name"] for entry in index] == ["mine", "Megatron-LM 8.3B", "Megatron-BERT (ensemble)"]


@pytest.mark.parametrize(
    "card", ["", "# only text\n", "---\n---\ntext", "---\nlicense: mit\n---", "---\r\nlicense: mit\r\n---\r\nx\r\n"]
)
def test_a_card_with_few_metadata_or_none_gets_them(card: str) -> None:
    from huggingface_hub import ModelCard

    new = merged(card, model_index(boards([measured(0.45)])))
    found = ModelCard(new)
    assert found.data.model_name == "gpt-345m"
    assert len(found.data.eval_results or []) == 2
    assert ("\r\n" in new) == ("\r\n" in card)
    if "text" in card or "x" in card:
        assert new.endswith(card.rpartition("---")[2].lstrip("\r\n"))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\na: [\n---\n", "the metadata of the model card are no YAML"),
        ("---\n- a\n---\n", "the metadata of the model card are no mapping"),
        ("---\nmodel-index: 3\n---\n", "the `model-index` of the model card is no list"),
        ("---\nmodel-index: [{name: x}]\n---\n", "the `model-index` of the model card is no list"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused(card: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        merged(card, model_index(boards([measured(0.45)])))


# ---- a hub of one repository ----


class Hub(ThreadingHTTPServer):
    """Serves the card of `owner/model`, and keeps what is committed to it."""

    def __init__(self, card: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.card = card
        self.commits: list[dict[str, Any]] = []
        self.validated: list[str] = []
        self.refusal = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def commit(self) -> str:
        return f"{self.address}/owner/model/commit/{'b' * 40}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path != "/owner/model/resolve/main/README.md" and not self.path.endswith(f"{'a' * 40}/README.md"):
            self.answer(404, X_Error_Code="RepoNotFound")
        elif self.server.card is None:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit="a" * 40)
        else:
            self.answer(200, self.server.card.encode(), ETag='"e1"', X_Repo_Commit="a" * 40)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            self.server.validated.append(json.loads(body)["content"])
            self.answer(200, b"{}")
        elif self.path.startswith("/api/models/owner/model/preupload/main"):
            self.answer(200, b'{"files": [{"path": "README.md", "uploadMode": "regular", "shouldIgnore": false}]}')
        elif self.server.refusal:
            self.answer(
                self.server.refusal, b'{"error": "You have no right to write."}', X_Error_Message="no right to write"
            )
        elif self.path.startswith("/api/models/owner/model/commit/main"):
            lines = {line["key"]: line["value"] for line in map(json.loads, body.splitlines())}
            self.server.commits.append(lines)
            self.server.card = base64.b64decode(lines["file"]["content"]).decode()
            self.answer(200, json.dumps({"commitUrl": self.server.commit, "commitOid": "b" * 40}).encode())
        else:
            self.answer(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Any]:
    running: list[Hub] = []

    def start(card: str | None) -> Hub:
        hub = Hub(card)
        running.append(hub)
        Thread(target=hub.serve_forever, daemon=True).start()
        return hub

    yield start
    for hub in running:
        hub.shutdown()
        hub.server_close()


def test_results_are_committed_to_the_card_that_was_read(serve: Any) -> None:
    from mpeval.leaderboard.exports.push import push

    hub = serve(CARD)
    assert push(boards([measured(0.45)]), "owner/model", endpoint=hub.address) == hub.commit
    (commit,) = hub.commits
    assert commit["header"]["parentCommit"] == "a" * 40
    assert hub.card == merged(CARD, model_index(boards([measured(0.45)])))
    assert hub.validated == [hub.card]
    assert push(boards([measured(0.45)]), "owner/model", endpoint=hub.address) == ""
    assert len(hub.commits) == 1


def test_a_repository_without_a_card_gets_one(serve: Any) -> None:
    from mpeval.leaderboard.exports.push import push

    hub = serve(None)
    push(boards([measured(0.45, name="a_b")]), "owner/model", endpoint=hub.address)
    assert hub.card.endswith("---\n\n# a\\_b\n")
    assert index_of(hub.card)["model-index"][0]["name"] == "a_b"


def test_what_the_hub_refuses_is_an_error_with_its_reason(serve: Any) -> None:
    from mpeval.leaderboard.exports.push import push

    hub = serve(CARD)
    with pytest.raises(DataError, match="the hub has no model `owner/none`"):
        push(boards([measured(0.45)]), "owner/none", endpoint=hub.address)
    with pytest.raises(UsageError, match="`a/b/c` is no name of a repository"):
        push(boards([measured(0.45)]), "a/b/c", endpoint=hub.address)
    hub.refusal = 403
    with pytest.raises(OutputError, match=r"did not take the model card of `owner/model`: .*403"):
        push(boards([measured(0.45)]), "owner/model", endpoint=hub.address)
    assert hub.card == CARD


def test_a_hub_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpeval.leaderboard.exports.push import push

    # a connection that is refused ends the same way, after the library has tried it for 20 seconds
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match=r"the hub at `http://127\.0\.0\.1:9` cannot be reached"):
        push(boards([measured(0.45)]), "owner/model", endpoint="http://127.0.0.1:9")


def test_the_command_pushes_the_rows_of_the_models_it_is_given(serve: Any, tmp_path: Path) -> None:
    hub = serve(CARD)
    append(tmp_path / "s.jsonl", [*megatron(), measured(0.45)])
    line = [sys.executable, "-m", "mpeval", "leaderboard", "publish", "--store", str(tmp_path / "s.jsonl")]
    line += ["--push-to-hub", "owner/model", "--model", "Megatron-LM 8.3B"]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"pushed {hub.commit}\n"
    (entry,) = index_of(hub.card)["model-index"]
    found = [metric["value"] for result in entry["results"] for metric in result["metrics"]]
    assert sorted(found) == [0.9, 10.81, 66.51]
