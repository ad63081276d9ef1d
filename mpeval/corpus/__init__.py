"""Text as Megatron stores it, and the samples that training draws from it; needs no torch."""
