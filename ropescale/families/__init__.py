"""Families of Transformers: which are patched, and where each keeps its rotary facts. Knows nothing of patching."""

import ropescale.families.late_type  # noqa: F401  # before a config that states the type is read
