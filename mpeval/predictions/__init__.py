"""What models have predicted, as stored: read, compared in pairs, averaged, scored again.  No torch."""
