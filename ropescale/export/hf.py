"""Transformers: the config that a patched model is saved with."""

from transformers import PreTrainedConfig

from ropescale.export.rotation import Canonical
from ropescale.export.stated import Stated, fields_of, native_form


def state(config: PreTrainedConfig, canonical: Canonical) -> Stated:
    """What Transformers is told: the idiomatic native type where it is exact, else one divisor per pair."""
    fields = fields_of(config, canonical, [one.parameters for one in canonical.rotations])
    return Stated(fields=fields, form=native_form(canonical.main), serves=canonical.main.target_length)
