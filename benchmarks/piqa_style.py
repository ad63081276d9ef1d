"""PIQA as lm-evaluation-harness scores it, for a GPT checkpoint: accuracy of two answers' likelihoods.

    python benchmarks/piqa_style.py CHECKPOINT DATA

DATA holds `piqa/valid.jsonl` and `piqa/valid-labels.lst`.  The prompt is "Question: {goal}\\nAnswer:", an answer is
" {solution}"; `acc` takes the likelier answer, `acc_norm` the likelier per character of its text.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import mpeval
from mpeval.tokenizer import find_tokenizer


def interval(correct: int, rows: int) -> str:
    """Return the Wilson 95 % interval of a proportion in per cent."""
    share, z = correct / rows, 1.959964
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return f"{100 * (middle - reach):.2f} % - {100 * (middle + reach):.2f} %"


def main() -> None:
    """Score every row and print both accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    checkpoint = mpeval.open_checkpoint(options.checkpoint)
    tokenizer = find_tokenizer(None, [checkpoint.root, checkpoint.path])
    model = mpeval.load_model(checkpoint, dtype="float32")
    folder = options.data / "piqa"
    rows = [json.loads(line) for line in (folder / "valid.jsonl").read_text().splitlines()]
    labels = [int(line) for line in (folder / "valid-labels.lst").read_text().split()]
    requests, limit, long = [], checkpoint.config.context, 0
    for row in rows:
        prompt = f"Question: {row['goal']}\nAnswer:"
        for name in ("sol1", "sol2"):
            # the harness tokenizes prompt and answer as one text and takes what comes after the prompt's own tokens
            both, head = tokenizer.encode(f"{prompt} {row[name]}"), tokenizer.encode(prompt)
            start = max(len(head), len(both) - limit)  # an answer longer than the context: its end
            long += start > len(head)
            requests.append(mpeval.Request(context=both[:start], target=both[start:]))
    answers = mpeval.score(model, requests)
    correct = {"acc": 0, "acc_norm": 0}
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        logs = [answer.log_probability for answer in answers[2 * number : 2 * number + 2]]
        lengths = [len(row["sol1"]), len(row["sol2"])]
        correct["acc"] += (logs[1] > logs[0]) == label
        correct["acc_norm"] += (logs[1] / lengths[1] > logs[0] / lengths[0]) == label
    print(f"{checkpoint.root.name}, iteration {checkpoint.iteration}, PIQA validation, {len(rows):,} rows, float32")
    print(f"{long} answers are longer than the context of {limit} tokens: only their ends are scored")
    for name, count in correct.items():
        print(f"{name:8} {100 * count / len(rows):.2f} %   95 % interval {interval(count, len(rows))}")


if __name__ == "__main__":
    main()
