"""Perplexity three ways: strided by context length, by position from one reading, and over key tokens (LongPPL)."""
