"""Models on tensor-parallel layers."""
