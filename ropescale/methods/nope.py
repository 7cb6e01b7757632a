"""NoPE."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.checks import is_whole, require_choice, require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.late import Fixed, WithoutRotation

LOGIT_SCALES = ("drope", "none")


@dataclass(frozen=True, kw_only=True)
class NoPE(WithoutRotation, name="nope"):
    """No positions but the causal mask, in all layers or in some.

    Kazemnejad et al. 2023, arXiv:2305.19466. Recalibrated at the original length it is DroPE (Gelberg et al. 2025,
    arXiv:2512.12167), which for a longer context multiplies logits by 1 + coefficient * ln(factor), fitted by
    perplexity at the target length.

    With `every` or `on` the other layers go on rotating as they did, within a `window` where one is given: RNoPE-SWA
    (Yang et al. 2025, arXiv:2501.18795) and SWAN (Puvvada et al. 2025, arXiv:2504.08719). `every=4` is layers 3, 7,
    11 ..., as Transformers counts `no_rope_layer_interval` of SmolLM3 and Llama 4. A logit scale, and `temperature`
    and `log_n` of `patch`, act in the layers without position alone. `layers` of `patch` says which layers are
    rescaled at all, and is no other name for these. A window masks, and frees no cache.
    """

    optional: ClassVar[tuple[str, ...]] = ("every", "on", "window")

    logit_scale: str = "none"  # or "drope"
    coefficient: float = 0.103  # of "drope"; the paper's for SmolLM-360M
    every: int | None = None  # each layer whose number, from 1, this divides is without position; all if not given
    on: tuple[int, ...] | None = None  # or these layers, by their numbers from 0
    window: int | None = None  # tokens that the other layers see, the query among them; all if not given

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("nope: logit_scale", self.logit_scale, LOGIT_SCALES, remedy="leave it out for 'none'")
        self.require_number("coefficient", at_least=0)
        if self.logit_scale == "drope" and self.factor is None:
            raise InvalidArgumentError(
                "nope: factor is required for logit_scale 'drope', got none; give factor or target_length"
            )
        if self.every is not None:
            whole = f"a whole number of layers, from 1 to {LONGEST}"
            require_whole("nope: every", self.every, 1, LONGEST, rule=whole, remedy="leave it out for all layers")
        if self.on is not None:
            if not isinstance(self.on, (list, tuple)) or not self.on or not all(is_whole(one, 0) for one in self.on):
                raise InvalidArgumentError(
                    f"nope: on must be a list of numbers of layers, from 0, got {shortened(self.on)}; leave it out "
                    f"for all layers"
                )
            object.__setattr__(self, "on", tuple(sorted(set(self.on))))
        if self.every is not None and self.on is not None:
            raise InvalidArgumentError(
                f"nope: every and on must not be given together, got {self.every} and {list(self.on)}; give one"
            )
        if self.window is not None:
            self.require_tokens("window")
            if self.every is None and self.on is None:
                raise InvalidArgumentError(
                    f"nope: window must come with every or on, since it is for the layers that go on rotating, got "
                    f"{self.window}; give one of the two, or leave it out"
                )

    def left(self, geometry: Geometry) -> frozenset[int]:
        numbers = set(range(geometry.layers))
        if self.every is not None:
            without = {number for number in numbers if (number + 1) % self.every == 0}
            if not without:
                raise InvalidArgumentError(
                    f"nope: every must be at most the number of layers ({geometry.layers}), got {self.every}; give "
                    f"less"
                )
            return frozenset(numbers - without)
        if self.on is None:
            return frozenset()
        if self.on[-1] >= geometry.layers:
            raise InvalidArgumentError(
                f"nope: on must number layers that there are, from 0 to {geometry.layers - 1}, got {list(self.on)}; "
                f"leave out what is beyond"
            )
        return frozenset(numbers - set(self.on))

    def beside(self) -> Fixed:
        return Fixed(window=self.window)

    def query_scale(self, geometry: Geometry, query: Tensor) -> Tensor | None:
        if self.logit_scale == "none" or self.factor is None:
            return None
        return torch.full(
            query.shape, 1 + self.coefficient * math.log(self.factor), dtype=torch.float32, device=query.device
        )
