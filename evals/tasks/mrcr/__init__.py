"""MRCR for the harness: one of several replies to the same request, named by its number."""
