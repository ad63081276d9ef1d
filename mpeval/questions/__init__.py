"""Questions of benchmarks, read from their published files, archives or a hub, and checked.  No torch."""
