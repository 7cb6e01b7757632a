"""What a server may make of a checkpoint: the rotation that is meant, and those that engines are known to arrive at.

Every reading is a real model: the weights of the reference, with the rotation of an engine that loses, ignores or
repeats an entry. Where two come to the same rotation they are one reading, with the names of both.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ropescale.errors import ExportError, UnsupportedModelError
from ropescale.export.canonical import WITHOUT_POSITION_BELOW, Canonical, canonical, read_original
from ropescale.export.source import Source
from ropescale.extension import extended_again
from ropescale.families.parts import Part, parts_of, stating
from ropescale.families.reading import read_geometry
from ropescale.families.today import depends_on_length, rope_type_of, todays_spectrum
from ropescale.geometry import Geometry
from ropescale.methods import LongRoPE, YaRN
from ropescale.methods.base import WITHOUT_POSITION
from ropescale.patching import patched, repatch, unpatch
from ropescale.records import EXPORT_FIELD, Record, saved_record
from ropescale.spectrum import Spectrum, base_inv_freq, theta_inv_freq

THETA = 10_000.0  # of engines that find none
MEANT, CUT = "as meant", "a prompt cut"
SAME = 1e-4  # relative difference of frequencies and attention factors up to which two readings are one


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is left of prompts that are too long."""

    length: int  # tokens
    end: bool  # whether the last ones are left, or the first

    def of(self, ids: Sequence[int]) -> list[int]:
        """What is left of a prompt."""
        if len(ids) <= self.length:
            return list(ids)
        return list(ids[-self.length :] if self.end else ids[: self.length])

    def __str__(self) -> str:
        return f"only the {'last' if self.end else 'first'} {self.length:,} tokens of a prompt"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One thing that a server may compute."""

    name: str  # a short one, which several may have
    says: str  # what it is, in words
    remedy: str
    spectrum: Spectrum | None = None  # of the layers that read the whole context; None for what the reference means
    cut: Cut | None = None
    also: tuple[str, ...] = ()  # the names of what comes to the same here


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a reference means, and what else it may be read as."""

    method: str  # in words
    record: Record | None  # of what is done to the weights; None where the config says all of it
    layers: str  # which a patch rescales
    original_length: int  # tokens
    target_length: int  # tokens
    base: Geometry  # the rotation of the weights before that
    by_length: bool  # whether Transformers rotates by the length of the whole text
    readings: list[Reading]

    def with_cuts(self, lengths: Sequence[int]) -> list[Reading]:
        """The readings, and those of prompts that are cut to so many tokens."""
        whole = [one for one in self.readings if one.name in (MEANT, "the unpatched model")]
        cuts = [Cut(length=length, end=end) for length in lengths for end in (True, False)]
        return self.readings + [
            dataclasses.replace(
                one,
                name=CUT,
                says=f"{cut}, with {one.says}",
                remedy="give the server the length that the model is to read, and see that nothing before it cuts",
                cut=cut,
                also=(),
            )
            for cut in cuts
            for one in whole
        ]


def meaning_of(source: Source) -> Meaning:
    """What a source means, and what else it may be read as.

    Raises:
        RopescaleError: a config that cannot be read.
    """
    record, config, before = saved_record(source.text), source.text, source.text
    label = getattr(source.config, EXPORT_FIELD, None) or {}
    if record is not None:  # which comes before what an export says in the words of its engine
        before, extension = extended_again(config, record)
        config = copy.deepcopy(before)
        extension.write(config)
    part, own = parts_of(config)[0], parts_of(before)[0]
    rotations = _rotations(config, lossy=False)
    original = read_original(config, record)
    target = max(original, int(config.max_position_embeddings) if record is None else record.target_length)
    geometry = read_geometry(before, original_length=original, existing="replace")
    static = _rotations(config, lossy=True) if rotations is None and record is not None else None
    meant = Reading(name=MEANT, says="the method as meant", remedy="")
    if label.get("approximation") and static is not None:
        meant = dataclasses.replace(meant, spectrum=static.main.spectrum)
        record, rotations, static = None, static, None
    plain = Spectrum(base_inv_freq(geometry))
    if record is not None and not depends_on_length(own.config):
        plain = Spectrum(*todays_spectrum(own))
    others: list[Reading] = []
    if record is not None or rope_type_of(config if not part.label else part.config) != "default":
        others.append(
            Reading(
                name="the unpatched model",
                says="the model before it was extended",
                remedy="the scaling did not arrive: serve the exported checkpoint, or give the flags that `ropescale "
                "export` prints",
                spectrum=plain,
            )
        )
    if rotations is not None:
        others += _misread(rotations, geometry)
    if static is not None:
        others.append(_frozen(static.approximation, static.main.spectrum))
    if record is None and depends_on_length(part.config):
        others += _of_lists(part)
    return Meaning(
        method=canonical_method(source, record),
        record=record,
        layers="global" if record is None else record.layers,
        original_length=original,
        target_length=target,
        base=geometry,
        by_length=record is None and depends_on_length(part.config),
        readings=_merged(meant, None if rotations is None else rotations.main.spectrum, others),
    )


def canonical_method(source: Source, record: Record | None) -> str:
    """What made a reference, in words."""
    if record is None:
        return "as its config says"
    return f"{record.method} x{record.target_length / record.original_length:g}"


def _rotations(config: Any, *, lossy: bool) -> Canonical | None:
    """The fixed rotations that a config states; None where it states none."""
    try:
        return canonical(config, lossy=lossy)
    except ExportError:
        return None


def _misread(rotations: Canonical, base: Geometry) -> list[Reading]:
    """What becomes of a fixed rotation in engines that lose, ignore or repeat an entry."""
    main = rotations.main
    inv_freq, scale = main.spectrum.inv_freq, main.spectrum.attention_factor
    original, target, factor = main.original_length, main.target_length, main.factor

    def stated(**changes: Any) -> Spectrum | None:
        return _stating(main.part, {**main.parameters, **changes})

    found: list[tuple[str, str, str, Spectrum | None]] = []
    ignored, again = "the attention factor ignored", "the attention factor repeated"
    read = "serve what `ropescale export` writes for this engine, which states the factor as the engine reads it"
    found.append((ignored, "its frequencies, without the attention factor", read, Spectrum(inv_freq, 1.0)))
    if factor > 1 and original > 1:
        theirs = math.sqrt(1 + math.log(factor) / math.log(original))
        says = f"its frequencies, with longrope's own attention factor ({theirs:.4g}) in the place of {scale:.4g}"
        found.append((ignored, says, read, Spectrum(inv_freq, theirs)))
    if scale != 1:
        found.append((again, "its frequencies, with the attention factor squared", read, Spectrum(inv_freq, scale**2)))
    theta = f"state rope_theta where the engine reads it: `ropescale export` does ({main.theta:g} here)"
    lost = f"its scaling, on a theta of {THETA:g} in the place of {main.theta:g}"
    found.append(("theta lost", lost, theta, stated(rope_theta=THETA)))
    neither = f"no scaling, on a theta of {THETA:g}"
    found.append(("theta lost", neither, theta, Spectrum(theta_inv_freq(THETA, main.rotary_dim))))
    longer = (
        "the original length taken from the extended maximum",
        f"its method, as if pretraining had seen {target:,} tokens and not {original:,}",
        f"state original_max_position_embeddings {original}, or give it as the flag of the engine",
        stated(original_max_position_embeddings=target),
    )
    found.append(longer)
    if factor > 1:
        found += [("the scaling twice", *one) for one in _twice(inv_freq, scale, base, main.theta, factor, target)]
    return [
        Reading(name=name, says=says, remedy=remedy, spectrum=spectrum)
        for name, says, remedy, spectrum in found
        if spectrum is not None
    ]


def _twice(
    inv_freq: torch.Tensor, scale: float, base: Geometry, theta: float, factor: float, target: int
) -> Iterator[tuple[str, str, Spectrum]]:
    """A scaling, and flags on top of it: the same method, or the one that flags of engines mean."""
    flags = "give the server either the exported checkpoint or flags, and not both"
    own = base_inv_freq(base)
    itself = torch.where(own > 0, inv_freq * inv_freq / own.clamp_min(WITHOUT_POSITION_BELOW), inv_freq)
    yield "its method on top of itself", flags, Spectrum(itself, scale**2)
    yield f"linear x{factor:g} on top of it", flags, Spectrum(inv_freq / factor, scale)
    for length in dict.fromkeys((base.original_length, target)):
        geometry = Geometry(rotary_dim=base.rotary_dim, theta=theta, original_length=length)
        yarn = YaRN(factor=factor).spectrum(geometry)
        stretch = base_inv_freq(geometry) / yarn.inv_freq
        says = f"yarn x{factor:g} of {length:,} tokens on top of it"
        yield says, flags, Spectrum(inv_freq / stretch, scale * yarn.attention_factor)


def _of_lists(part: Part) -> list[Reading]:
    """What becomes of two lists of stretches in engines that read one."""
    rope, found = part.config.rope_parameters, []
    for name in ("long_factor", "short_factor"):
        if isinstance(rope.get(name), list):
            one = _stating(part, {**rope, "long_factor": rope[name], "short_factor": rope[name]})
            if one is not None:
                found.append(_frozen(f"its {name} at every length", one))
    return found


def _frozen(says: str, spectrum: Spectrum) -> Reading:
    return Reading(
        name="fixed frequencies in its place",
        says=says,
        remedy="no engine does what depends on length or acts in attention: take a method of fixed frequencies, or "
        "load it in Transformers with ropescale.load",
        spectrum=spectrum,
    )


def _stating(part: Part, parameters: dict[str, Any]) -> Spectrum | None:
    """What Transformers makes of a part with other parameters; None where it makes nothing of them."""
    try:
        inv_freq, scale = todays_spectrum(dataclasses.replace(part, config=stating(part.config, parameters)))
    except UnsupportedModelError:
        return None
    return Spectrum(torch.where(inv_freq > WITHOUT_POSITION_BELOW, inv_freq, torch.zeros_like(inv_freq)), scale)


def _merged(meant: Reading, spectrum: Spectrum | None, others: Sequence[Reading]) -> list[Reading]:
    """The readings, with those of one rotation in one."""
    found: list[tuple[Reading, Spectrum | None]] = [(meant, spectrum)]
    for other in others:
        assert other.spectrum is not None
        for place, (known, its) in enumerate(found):
            if its is not None and _same(its, other.spectrum):
                if other.name not in (known.name, *known.also):
                    found[place] = dataclasses.replace(known, also=(*known.also, other.name)), its
                break
        else:
            found.append((other, other.spectrum))
    return [reading for reading, _ in found]


def _same(one: Spectrum, other: Spectrum) -> bool:
    return one.inv_freq.shape == other.inv_freq.shape and bool(
        torch.allclose(one.inv_freq, other.inv_freq, rtol=SAME, atol=0.0)
        and abs(one.attention_factor / other.attention_factor - 1) < SAME
    )


@contextmanager
def standing(model: nn.Module, meaning: Meaning, reading: Reading) -> Iterator[nn.Module]:
    """The model of a reading within the block: the weights of the reference with that rotation."""
    with warnings.catch_warnings(action="ignore"):  # of layers with a window: said when the reference was patched
        if reading.spectrum is not None:
            base = base_inv_freq(meaning.base)
            stretch = torch.where(
                reading.spectrum.inv_freq > 0, base / reading.spectrum.inv_freq, torch.tensor(WITHOUT_POSITION)
            )
            method = LongRoPE(
                factor=max(1.0, meaning.target_length / meaning.original_length),
                long_factor=tuple(stretch.tolist()),
                attention_factor=reading.spectrum.attention_factor,
            )
            asked = {"original_length": meaning.original_length, "existing": "replace", "layers": meaning.layers}
            with patched(model, method, **asked):
                yield model
        elif meaning.record is not None:
            repatch(model, meaning.record)
            try:
                yield model
            finally:
                unpatch(model)
        else:
            yield model
