"""Which of several real passages a sentence is quoted from, for the harness."""
