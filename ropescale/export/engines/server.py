"""A kind of engine: servers that take entries of a config on their command line.

They share rules, which were read in vLLM 0.32.0 and run with it:

- They read default, linear, llama3 and yarn as Transformers does, the knobs of yarn included.
- They ignore the attention factor of longrope, and read short_mscale and long_mscale instead.
- They multiply max_position_embeddings by the factor of linear, so that one has to state the original length there;
  not for Gemma 3.
- Their longrope rotates halves only: families that rotate neighbours cannot have one divisor per pair.
- Their latent attention of DeepSeek's kind reads mscale and mscale_all_dim, and not attention_factor.
- Their rotation by an image's time, height and width (mrope_section) knows theta and yarn alone: of another type they
  take that of text, and then give it three positions a token.
- Where original_max_position_embeddings is an entry of its own (Phi-3), longrope serves that length unless told.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ropescale.export.canonical import Canonical, Rotation
from ropescale.export.engines.base import Engine
from ropescale.export.reads import LATENT, YARN
from ropescale.export.stated import (
    Stated,
    as_argument,
    by_mscale,
    fields_of,
    lengths,
    native_form,
    states_original_length_on_top,
)


class Server(Engine):
    """An engine with these rules."""

    abstract = True
    length_flag: ClassVar[str]  # how long it may serve
    overrides_flag: ClassVar[str]  # entries of config.json, in JSON

    def state(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        """What it is told."""
        main = canonical.main
        flat = not main.part.label
        parameters = [spelled(rotation, config, flat=flat) for rotation in canonical.rotations]
        fields = fields_of(config, canonical, parameters)
        form, serves = native_form(main), main.target_length
        flags: tuple[str, ...] = ()
        if parameters[0]["rope_type"] == "linear":
            fields |= lengths(config, main.original_length)
        if parameters[0]["rope_type"] == "longrope":
            form = "one divisor per pair (longrope with equal lists, short_mscale and long_mscale)"
            if states_original_length_on_top(config):
                serves = main.original_length
                flags = (f"{self.length_flag} {main.target_length}",)
        overrides = {name: fields[name] for name in ("rope_parameters", "max_position_embeddings")}
        return Stated(fields=fields, form=form, serves=serves, flags=flags, overrides=overrides)

    def reads_of(self, family: str, rope: Mapping[str, Any]) -> frozenset[str] | None:
        """Theta and yarn where pairs go by an image's coordinates."""
        held = super().reads_of(family, rope)
        if "mrope_section" not in rope:
            return held
        return YARN if held is None else held & YARN

    def leaves_out(self, family: str, rotation: Rotation, rope: Mapping[str, Any]) -> bool:
        """Whether its class knows yarn without its knobs."""
        return rope["rope_type"] == "yarn" and family in LATENT and not rope.get("truncate", True)

    def overrides(self, stated: Stated, target: int, limit: float) -> tuple[str, str]:
        """The entries that say how positions rotate, and the length."""
        return "", f"{self.overrides_flag} {as_argument(stated.overrides)} {self.length_flag} {target}"


def spelled(rotation: Rotation, config: PreTrainedConfig, *, flat: bool) -> dict[str, Any]:
    """The rope parameters of one part."""
    native = ["default", "llama3", "yarn"]
    by_layer = getattr(rotation.part.whole, "is_heterogeneous", False)  # where no config states divisors
    scaled_length = rotation.original_length * rotation.parameters.get("factor", 1.0)
    if (flat or by_layer) and scaled_length == rotation.target_length:
        native += ["dynamic", "linear"]  # a fixed dynamic is HunYuan's, by alpha, with a factor of 1
    if by_layer and "factor" not in rotation.parameters:  # which vLLM's proportional leaves out
        native.append("proportional")
    if rotation.rope_type == "yarn" and config.model_type in LATENT:
        return by_mscale(rotation)
    if rotation.rope_type in native:
        return rotation.parameters
    scale = rotation.spectrum.attention_factor
    return {**rotation.pairwise(), "short_mscale": scale, "long_mscale": scale}
