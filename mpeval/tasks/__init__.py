"""Benchmarks: cards that name data and protocols, and the code that turns rows into requests.  No torch."""
