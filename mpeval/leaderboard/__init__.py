"""The leaderboard: an append-only file of records, and pages that are a pure function of it.  No torch."""
