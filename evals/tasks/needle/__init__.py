"""Needles in a haystack of real text, for the harness."""
