"""Numbers of others' tables and files: read, cleaned, checked, and told what became of each.  No torch."""
