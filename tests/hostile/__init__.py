"""The hostile corpus: what strangers may send, made here and never stored as bytes."""
