"""What a checkpoint's config says about positions: its geometry, its wavelengths, and what scaling it has already."""

import math
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from ropescale.checkpoints import resolve
from ropescale.checks import as_float, is_whole
from ropescale.contents import read_config
from ropescale.errors import AlreadyScaledError, UnsupportedModelError, shortened
from ropescale.explain import theory
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.layers import rotating_window, unrotated
from ropescale.families.parts import GLOBAL, UNSCALED, Part, parts_of, text_of
from ropescale.families.reading import part_geometry, read_original_length, scaling
from ropescale.families.support import require_supported
from ropescale.families.today import rope_type_of, todays_spectrum
from ropescale.geometry import LONGEST, Geometry
from ropescale.pages.elements import number
from ropescale.records import saved_record
from ropescale.spectrum import Spectrum

ROWS = 9  # pairs shown of each part

# What a rope_type of Transformers means for whoever goes on from there
IMPLIED = {
    "default": "nothing is scaled; ropescale.patch starts from here",
    "dynamic": "frequencies follow the longest text so far: cached and uncached decoding disagree beyond the original "
    "length, and rows of a batch change one another; method 'dynamic_ntk' decides by each token's own position",
    "linear": "every pair is slowed alike, inside the original length too: the model was trained so, or short texts "
    "have got worse",
    "llama3": "pairs with few turns are slowed, in texts of every length; checkpoints published so were trained so",
    "longrope": "every pair has a stretch of its own, in texts of every length",
    "proportional": "only the fastest pairs rotate; the others carry no position",
    "yarn": "pairs with few turns are slowed and attention is sharper, in texts of every length: without training, "
    "short texts lose a little",
}
LOCAL = (
    "nothing is scaled, and nothing has to be: layers that read the whole context have no positions, and where others "
    f"rotate no distance grows; method {UNSCALED!r} raises the limit alone"
)
SWITCHING = (
    "two lists of stretches: Transformers takes the long one for a whole batch as soon as one text exceeds the "
    "original length, so texts that grow across it are rotated in two ways"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """What the config says about the layers of one part."""

    label: str  # the layer type; empty where all layers share one rotation
    geometry: Geometry  # as pretrained; of the maximum of today where the config does not say from what it was scaled
    source: str  # where the original length was read; empty where the config does not state it
    maximum: int  # tokens: max_position_embeddings of today
    window: int  # tokens that these layers look back; 0 where they read the whole context
    narrow: str  # how many of the layers that share this rotation look back less, in words; empty where none does
    unrotated: str  # the entry by which no layer rotates; empty where layers do
    factor: float  # that today's scaling states; 1 where it states none
    scaled_by: str  # in words; empty where nothing is scaled
    implied: str  # a sentence
    today: Spectrum | None  # None where attention does what no frequencies say

    def facts(self) -> dict[str, tuple[str, str]]:
        """Name -> value, and what it says."""
        geometry = self.geometry
        layers = (number(geometry.layers), self.label or f"one rotation for all{self.narrow}")
        if self.unrotated:
            return {
                "rotation": ("none", f"{self.unrotated}: no layer rotates, and theta and scaling are not used"),
                "layers": layers,
                "maximum today": (
                    number(self.maximum),
                    "tokens; for a longer context max_position_embeddings alone is raised",
                ),
            }
        wavelength = 2 * math.pi / theory.frequencies(geometry)
        slow = theory.pairs_without_a_turn(geometry)
        longest = float(wavelength.max())
        return {
            "theta": (number(geometry.theta), "the base of the series of frequencies"),
            "pairs": (
                number(geometry.pairs),
                f"turning {geometry.rotary_dim} of a head's {geometry.head_dim} elements",
            ),
            "layers": layers,
            **self._lengths(),
            "fastest wavelength": (number(float(wavelength.min())), "tokens per turn, as pretrained"),
            "slowest wavelength": (
                number(longest),
                f"tokens per turn, {number(longest / geometry.original_length)} times the {self.span}",
            ),
            "pairs without a full turn": (
                f"{len(slow)} of {geometry.pairs}",
                f"from pair {slow[0]} on: within the {self.span} they never come round" if slow else "all come round",
            ),
            "scaled already": (self.scaled_by or "no", self.implied),
        }

    @property
    def span(self) -> str:
        """What turns are counted over, in words: what these layers see of a text, as far as it is known."""
        return "window" if self.window else "original length" if self.source else "maximum today"

    def _lengths(self) -> dict[str, tuple[str, str]]:
        if self.window:
            return {
                "window": (number(self.window), "tokens: these layers see no further, however long the text is"),
                "maximum today": (number(self.maximum), "tokens, for the layers that read the whole context"),
            }
        original = self.geometry.original_length
        if not self.source:
            factor = self.factor
            by_factor = f"; {number(self.maximum / factor)} if the maximum is the one that factor {factor:g} made"
            return {
                "original length": (
                    "not stated",
                    "--original-length states it" + (by_factor if factor > 1 else ""),
                ),
                "maximum today": (number(self.maximum), "tokens"),
            }
        return {
            "original length": (number(original), f"tokens, from {self.source}"),
            "maximum today": (
                number(self.maximum),
                f"tokens, {number(self.maximum / original)} times the original length",
            ),
        }

    def rows(self) -> list[list[str]]:
        """Some pairs from the fastest to the slowest: pair, wavelength, turns over what the layers see, stretch.

        None where no layer rotates.
        """
        if self.unrotated:
            return []
        geometry = self.geometry
        inv_freq = theory.frequencies(geometry)
        chosen = sorted({round(i) for i in torch.linspace(0, geometry.pairs - 1, min(ROWS, geometry.pairs)).tolist()})
        lines = []
        for pair in chosen:
            base = float(inv_freq[pair])
            stretch = "by position"
            if self.today is not None:
                live = float(self.today.inv_freq[pair])
                stretch = number(base / live) if live else number(math.inf)
            turns = base * geometry.original_length / (2 * math.pi)
            wavelength = 2 * math.pi / base if base else math.inf
            lines.append([str(pair), number(wavelength), number(turns), stretch])
        return lines


def inspected(model: str, *, original_length: int | None = None) -> tuple[PreTrainedConfig, list[Inspection]]:
    """The config of a checkpoint and what it says about each part, the layers that read the whole context first.

    Raises:
        CheckpointError: no checkpoint there.
        UnsupportedModelError: not a family of this version.
        InvalidArgumentError: `original_length` is no length.
    """
    config = text_of(read_config(resolve(model), trust_remote_code=False))
    require_supported(config)
    return config, [_inspection(part, original_length) for part in parts_of(config)]


def _inspection(part: Part, original_length: int | None) -> Inspection:
    config = part.config
    maximum = getattr(config, "max_position_embeddings", None)
    if not is_whole(maximum):
        raise UnsupportedModelError(
            f"{config.model_type}: max_position_embeddings must be a whole number of tokens, got "
            f"{shortened(maximum)}; repair the config"
        )
    try:
        geometry = part_geometry(part, original_length=original_length, existing="replace")
        source = read_original_length(config, original_length)[1]
    except AlreadyScaledError:  # scaled, and the config does not say from what length
        geometry = part_geometry(part, original_length=config.max_position_embeddings, existing="replace")
        source = ""
    window = _window(part)
    narrow, local = _narrow(part, geometry.original_length), rotating_window(part.whole, geometry.original_length)
    local = local or int(parts_of(part.whole)[0].label not in ("", *GLOBAL))
    geometry = replace(geometry, layers=_layers(part), original_length=window or geometry.original_length)
    factor = as_float(config.rope_parameters.get("factor"))
    today = None if rope_type_of(config) == LATE_TYPE else Spectrum(*todays_spectrum(part))
    if today is not None and len(today.inv_freq) != geometry.pairs:
        raise UnsupportedModelError(
            f"{config.model_type}: rope_parameters must state one frequency for each of {geometry.pairs} pairs, got "
            f"{len(today.inv_freq)}; repair the config"
        )
    return Inspection(
        label=part.label,
        geometry=geometry,
        source=source,
        maximum=config.max_position_embeddings,
        window=window,
        narrow=narrow,
        unrotated=unrotated(config),
        factor=factor if math.isfinite(factor) else 1.0,
        scaled_by=scaling(config),
        implied=_implied(part, geometry, known=bool(source), local=bool(local)),
        today=today,
    )


def _layers(part: Part) -> int:
    """How many layers are of this part."""
    types = getattr(part.whole, "layer_types", None) or ()
    own = sum(kind == part.label for kind in types)
    return own or int(part.config.num_hidden_layers)  # where rotations are named otherwise than layers


def _narrow(part: Part, length: int) -> str:
    """How many layers look back a window only, where all share one rotation; and whether no others rotate."""
    if not part.label and (rotating := rotating_window(part.whole, length)):
        return f"; only those of a window of {rotating:,} tokens rotate"
    window = getattr(part.whole, "sliding_window", None)
    narrow = sum(kind == "sliding_attention" for kind in getattr(part.whole, "layer_types", None) or ())
    if part.label or not narrow or not isinstance(window, int):
        return ""
    return f"; {narrow} of them look back {window:,} tokens"


def _window(part: Part) -> int:
    """How many tokens the layers of this part look back; 0 where they read the whole context."""
    window = getattr(part.config, "sliding_window", None)
    return window if "sliding" in part.label and isinstance(window, int) and 0 < window <= LONGEST else 0


def _implied(part: Part, geometry: Geometry, *, known: bool, local: bool) -> str:
    """What the scaling of today means, and where a further one would start."""
    config = part.config
    rope = config.rope_parameters
    if done := saved_record(config):
        return (
            f"x {number(done.target_length / done.original_length)}: ropescale.load(path) brings it back, and unpatch "
            f"leads to {done.before.get('max_position_embeddings'):,} tokens"
        )
    rope_type = rope_type_of(config)
    if rope_type == "default":
        return LOCAL if local else IMPLIED["default"]
    switching = rope_type == "longrope" and rope.get("short_factor") != rope.get("long_factor")
    said = SWITCHING if switching else IMPLIED.get(rope_type, "Transformers alone knows")
    start = 'existing="replace" starts again from original_length, which it asks for'
    if known:
        start = f'existing="replace" starts again from {geometry.original_length:,} tokens'
    if rope_type != "dynamic":
        start += f', existing="compose" goes on from {config.max_position_embeddings:,}'
    return f"{said}; {start}"
