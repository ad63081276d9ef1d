# `make demo` and `make test` do all the set-up themselves: they need Python 3.11 or newer, and make.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
# test processes side by side, each computing on one thread
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 8))')

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
	$(BIN)/mpeval evaluate checkpoints/demo-gpt --task lambada --task wikitext103/disjoint \
	  --data tasks/samples --tp 2 --output $(DEMO)/gpt --record $(DEMO)/results.jsonl
	$(BIN)/mpeval evaluate checkpoints/demo-bert --task wikitext103/masked \
	  --data tasks/samples --tp 2 --output $(DEMO)/bert --record $(DEMO)/results.jsonl
	$(BIN)/mpeval finetune checkpoints/demo-bert --task race --data tasks/samples --tp 2 --output $(DEMO)/race \
	  --set epochs=2 --set batch=8 --quiet
	$(BIN)/mpeval evaluate $(DEMO)/race --task race --split test --data tasks/samples --tp 2 \
	  --output $(DEMO)/race/evaluations/test --record $(DEMO)/results.jsonl
	$(BIN)/mpeval leaderboard publish --store $(DEMO)/results.jsonl --output $(DEMO)
	@echo
	@echo "Those were two small models, trained here and cut into 2 shards each, on 2 local ranks and sample rows; then"
	@echo "the BERT finetuned on 24 sample questions, too few to learn from: its accuracy is that of guessing."
	@echo "open $(DEMO)/index.html to see them as a page. What to try next:"
	@echo "  $(BIN)/mpeval inspect checkpoints/demo-gpt"
	@echo "  $(BIN)/mpeval convert checkpoints/demo-gpt runs/converted --format huggingface"
	@echo "  $(BIN)/mpeval preprocess YOUR_TEXT --output runs/corpus --tokenizer checkpoints/demo-gpt --append-eod"
	@echo "  $(BIN)/mpeval pretrain gpt-tiny --data runs/corpus --tokenizer checkpoints/demo-gpt --output runs/tiny --tp 2"
	@echo "  $(BIN)/mpeval finetune YOUR_BERT --task race --data YOUR_DATA --output runs/race --seeds 5"
	@echo "  $(BIN)/mpeval evaluate YOUR_CHECKPOINT --task lambada --data YOUR_DATA --tokenizer YOUR_TOKENIZER"

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mpeval leaderboard publish --output leaderboard --check
	$(BIN)/mpeval leaderboard lint

clean:
	rm -rf .venv runs build dist
