"""The boards in the formats of others, each a pure function of them."""
