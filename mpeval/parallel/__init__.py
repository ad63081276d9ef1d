"""Tensor and data parallelism: the only place of the package that communicates."""
