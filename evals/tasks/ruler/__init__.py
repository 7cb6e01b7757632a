"""The thirteen tasks of RULER (arXiv 2404.06654) for the harness, at any length and with any tokenizer."""
