"""One training loop for pretraining and finetuning, over tensor- and data-parallel ranks."""
