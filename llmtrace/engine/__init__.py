"""The engine: requests in, tokens and traces out."""
