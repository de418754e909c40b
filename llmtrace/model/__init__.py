"""Checkpoints: their files, identity, architecture, tokenizer and names."""
