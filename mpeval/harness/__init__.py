"""The plug-in for lm-eval: importing this package registers the model `mpeval` with it.

import mpeval.harness
lm_eval.simple_evaluate("mpeval", "checkpoint=DIR,tokenizer=DIR,dtype=float32", tasks=["piqa"])
"""

from __future__ import annotations

from mpeval.harness.checkpoint import CheckpointModel
from mpeval.harness.model import LanguageModel

__all__ = ["CheckpointModel", "LanguageModel"]
