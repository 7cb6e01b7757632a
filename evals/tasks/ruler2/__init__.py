"""The graded tasks of the second RULER for the harness, as far as they need no download."""
