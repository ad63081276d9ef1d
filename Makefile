# `make demo` and `make test` do all the set-up themselves: they need Python 3.11 or newer, and make.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test check clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mpeval needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | $(BIN)/python
	@echo "installing mpeval into .venv; the first time takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch .venv/installed

demo: .venv/installed
	@rm -rf $(DEMO)
	$(BIN)/mpeval evaluate checkpoints/demo-gpt-random --task lambada --task wikitext103/disjoint \
	  --data tasks/samples --tp 2 --output $(DEMO) --record $(DEMO)/results.jsonl
	$(BIN)/mpeval leaderboard publish --store $(DEMO)/results.jsonl --output $(DEMO)
	@echo
	@echo "That was a model of random weights, cut into 2 shards, on 2 local ranks. Its numbers mean nothing;"
	@echo "open $(DEMO)/index.html to see them as a page. What to try next:"
	@echo "  $(BIN)/mpeval inspect checkpoints/demo-gpt-random"
	@echo "  $(BIN)/mpeval convert checkpoints/demo-gpt-random runs/converted --format huggingface"
	@echo "  $(BIN)/mpeval tasks list"
	@echo "  $(BIN)/mpeval evaluate YOUR_CHECKPOINT --task lambada --data YOUR_DATA --tokenizer YOUR_TOKENIZER"

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build dist
