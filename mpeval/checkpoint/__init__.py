"""Checkpoints of every era, opened as one logical model; nothing in them is ever executed."""
