"""Plan, commit, verify: a method put into a live model, and taken out again."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from ropescale.errors import (
    AlreadyPatchedError,
    CheckpointError,
    InvalidArgumentError,
    NotPatchedError,
    UnsupportedModelError,
    VerificationError,
    shortened,
)
from ropescale.extension import Extension, extended, extended_again, on_the_cpu, stated_for
from ropescale.families.catalogue import family_of
from ropescale.families.layers import layers_meant, rotating_window
from ropescale.families.modules import (
    Rotary,
    effective,
    find_rotaries,
    find_softmax,
    live_spectrum,
    require_matching,
)
from ropescale.families.parts import text_of
from ropescale.families.support import require_supported
from ropescale.injection.alone import alone, in_turn, settled
from ropescale.injection.claim import Claim, change_of_spectrum, change_when_read, last_position
from ropescale.injection.late import KEPT, LAYOUT
from ropescale.injection.patch import FIELD, Patch, patch_of
from ropescale.injection.probe import Probe
from ropescale.injection.proof import Proof
from ropescale.injection.proven import of_class, warn_of_untried_version
from ropescale.injection.rotation import Substitution, deviation
from ropescale.injection.saving import SAVE, saving_of
from ropescale.injection.snapshot import Snapshot
from ropescale.injection.softmax import Sharpening
from ropescale.limits import MAX_LENGTH
from ropescale.methods import Method
from ropescale.records import EXPORT_FIELD, Record, saved_record
from ropescale.request import Request
from ropescale.temperature import Temperature
from ropescale.wrappers import bare, config_of

TOLERANCE = 1e-4  # of cos and sin; float32 angles that differ in the last bit stay far below

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass(frozen=True)
class PatchPlan:
    """Everything a patch will do, worked out before it touches anything."""

    model: nn.Module
    rotaries: list[Rotary]
    sharpened: list[tuple[nn.Module, float]]  # attention layers and their new softmax scale
    extension: Extension


def patch(
    model: AnyModel,
    method: str | Method = "yarn",
    *,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    existing: str = "error",
    layers: str = "global",
    log_n: bool = False,
    temperature: Temperature | str | Mapping[str, Any] | None = None,
    **knobs: Any,
) -> AnyModel:
    """Give a model a longer context, in place and undoable; returns the same model.

    The frequencies of the rotary module are replaced by those of `method` (float32, also in a bf16 model, and also
    when the model is cast later); `config.rope_parameters`, `config.max_position_embeddings` and a record in
    `config.ropescale` follow, so that `save_pretrained` saves the extension; so does a `max_length` of
    `generation_config` that is the old maximum. No weight is read or written. Whatever
    can fail fails before the first change; afterwards the module's cos and sin are compared with the expected ones,
    and a difference rolls everything back.

    Args:
        model: a Transformers model, also under PEFT, DDP or torch.compile.
        method: a registry name (see `list_methods`) or a `Method` instance.
        factor: target length / original length, at least 1.
        target_length: tokens wanted; instead of `factor`, or agreeing with it.
        original_length: tokens the model was pretrained for; read from the config where it is not given, in the
            order record, `original_max_position_embeddings`, `max_position_embeddings`.
        existing: what to do with a checkpoint that is scaled already: "error", "replace" (start from theta and the
            original length) or "compose" (scale what it has now).
        layers: "global" (those that read the whole context) or "all"; matters where the config states a rotation for
            each layer type. "full": those that read the whole context also where one module rotates them and layers
            of a window, which keep their rotation; attention rotates then, as with methods that act there.
        log_n: multiply queries by max(1, ln(position + 1) / ln(original length)), with any method; the same as
            temperature="log_n".
        temperature: what queries are multiplied by, with any method, by their own positions: "log_n", "llama4",
            "yarn", "scalable" or "drope", with a coefficient as in "log_n:0.8" or {"rule": "log_n", "coefficient":
            0.8}; without one the rule is as it was published. See `ropescale.temperature`.
        **knobs: fields of the method, such as `beta_fast=16` or `resonance=True`.

    Forward passes and generations of other threads that have begun are waited for, and those that begin meanwhile
    wait: each sees the model as it was before or as it is after.

    Example:
        >>> import ropescale
        >>> model = ropescale.load("tiny")
        >>> model = ropescale.patch(model, method="yarn", factor=4)
        >>> model.config.max_position_embeddings
        512

    Raises:
        InvalidArgumentError: an argument that breaks its rule; the message names it and the remedy.
        UnknownMethodError: a name that is not in the registry.
        UnsupportedModelError: a model that this version does not patch.
        AlreadyPatchedError: patched before; `unpatch` first.
        AlreadyScaledError: scaled in its config, and `existing` is "error".
        BusyModelError: a pass of another thread that has begun does not end.
        VerificationError: the patch did not take effect; the model is as it was.
    """
    return put_in(model, Request.of(locals()))


def put_in(model: AnyModel, request: Request) -> AnyModel:
    """Patch a model as a request says; the errors are those of `patch`."""
    with in_turn(), on_the_cpu():
        plan = plan_of(model, request)
        warn_of_untried_version()
        if plan.extension.warning:  # before the first change: a filter may make it an error
            warnings.warn(plan.extension.warning, stacklevel=3)
        with _all_or_nothing(plan.model) as start:
            commit(plan, start)
    return model


def unpatch(model: AnyModel) -> AnyModel:
    """Take the patch out: the original tensors and config values are back, bit for bit; returns the same model.

    What was done to the model meanwhile (moved, cast) has been done to the original tensors too: the model is as
    it would be had it never been patched. Other threads wait, and are waited for, as with `patch`.

    Example:
        >>> import ropescale
        >>> model = ropescale.patch(ropescale.load("tiny"), method="linear", factor=2)
        >>> ropescale.unpatch(model).config.max_position_embeddings
        128

    Raises:
        NotPatchedError: nothing to take out.
        BusyModelError: a forward pass of another thread that has begun does not end.
    """
    with in_turn():
        standing = patch_of(model)
        if standing is None:
            raise _not_patched(model)
        with _all_or_nothing(bare(model)):
            standing.undo(model)
    return model


def _not_patched(model: nn.Module) -> NotPatchedError:
    """The error for a model that has nothing to take out, in words that tell what it is."""
    name, saved = type(bare(model)).__name__, record(model)
    if saved is not None:
        return NotPatchedError(
            f"model: must be patched to be unpatched, got a {name} that Transformers alone loaded from a checkpoint "
            f"saved with {saved.method!r} ({saved.target_length} tokens); load it with ropescale.load(path), and "
            f"unpatch that"
        )
    return NotPatchedError(
        f"model: must be patched to be unpatched, got an unpatched {name}; call ropescale.patch(model) first, or load "
        f"a saved one with ropescale.load(path)"
    )


def repatch(model: AnyModel, saved: Record) -> AnyModel:
    """Put a saved patch into a model whose config reads as it did before that patch.

    Raises:
        CheckpointError: a method or knobs that this version does not have.
        RopescaleError: whatever `patch` raises.
    """
    with in_turn(), on_the_cpu():
        text = text_of(config_of(model))
        plan = plan_of(model, Request.again(saved, layers=layers_meant(saved, text)))
        if saved.layers == "global" and rotating_window(text, saved.original_length) and plan.extension.warning:
            warnings.warn(plan.extension.warning, stacklevel=2)  # which this version does not patch without a word
        record = dataclasses.replace(
            plan.extension.record, original_length_source=saved.original_length_source, layers=saved.layers
        )
        plan = dataclasses.replace(plan, extension=dataclasses.replace(plan.extension, record=record))
        with _all_or_nothing(plan.model) as start:
            commit(plan, start)
    return model


@contextmanager
def patched(model: AnyModel, method: str | Method = "yarn", **arguments: Any) -> Iterator[AnyModel]:
    """A model that is patched within the block and as before after it, also after an error.

    The arguments and errors are those of `patch`. Where a pass of another thread goes on at the end of the block, that
    raises BusyModelError, and the model is still patched.

    Example:
        >>> import ropescale
        >>> model = ropescale.load("tiny")
        >>> with ropescale.patched(model, "yarn", factor=2):
        ...     model.config.max_position_embeddings
        256
        >>> model.config.max_position_embeddings
        128
    """
    patch(model, method, **arguments)
    try:
        yield model
    finally:
        unpatch(model)


def record(model: nn.Module) -> Record | None:
    """What was done to this model, or None; also of a saved patched model that was loaded without ropescale.

    Example:
        >>> import ropescale
        >>> model = ropescale.patch(ropescale.load("tiny"), method="yarn", factor=4)
        >>> done = ropescale.record(model)
        >>> done.method, done.original_length, done.target_length
        ('yarn', 128, 512)

    Raises:
        CheckpointError: the config's record is damaged.
    """
    with settled():
        if (standing := patch_of(model)) is not None:
            return standing.record
    config = getattr(bare(model), "config", None)
    return saved_record(text_of(config)) if isinstance(config, PreTrainedConfig) else None


def record_in_effect(model: nn.Module) -> Record | None:
    """What was done to this model, as `record` says it, if the model does it.

    One that Transformers alone loaded from a patched checkpoint does what its config states, which may have been
    edited.

    Raises:
        CheckpointError: the config states something else than its record gives, or the record is damaged.
    """
    done = record(model)
    if done is None or patch_of(model) is not None or hasattr(config_of(model), EXPORT_FIELD):
        return done
    text = text_of(config_of(model))
    _, again = extended_again(text, done)
    for name, value in again.fields.items():
        if getattr(text, name, None) != value:
            raise CheckpointError(
                f"model: config.{name} must be what the ropescale record in it gives ({shortened(value)}), got "
                f"{shortened(getattr(text, name, None))}; one of the two was edited: load the checkpoint that "
                f"ropescale saved with ropescale.load"
            )
    return done


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[Snapshot]:
    """What the block does to a model is done in whole, or the model is as it was: also after Ctrl-C or out of memory.

    An interruption may strike at any line, so nothing within cleans up after itself; what the model held at the
    beginning is put back from here. No other thread reads the model meanwhile.

    Raises:
        BusyModelError: another thread reads it, and goes on.
    """
    with alone(model) as gate, on_the_cpu():  # what is worked out is moved to where the model is, whatever the default
        start, saving = Snapshot(model), gate.kept(model, SAVE)

        def put_back() -> None:
            gate.keep(model, SAVE, saving)
            start.restore()

        try:
            yield start
            gate.keep(model, SAVE, saving_of(model, saving))
        except BaseException:
            try:
                put_back()
            except BaseException:  # interrupted once more: what was begun is finished before that is raised
                put_back()
                raise
            raise


def plan_of(model: nn.Module, request: Request) -> PatchPlan:
    """Work out a patch without touching the model; the errors are those of `patch`."""
    base = bare(model)
    config: Any = getattr(base, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise InvalidArgumentError(
            f"model: must be a Transformers model with a config, got {type(base).__name__}; "
            f"load it first, for instance with ropescale.load(path)"
        )
    text = text_of(config)
    require_supported(text)
    if (standing := patch_of(base)) is not None:
        raise AlreadyPatchedError(
            f"model: must not be patched yet, got one patched with {standing.record.method_instance()}; "
            f"call ropescale.unpatch(model) first"
        )
    extension = extended(text, request)
    limit = getattr(getattr(base, "generation_config", None), MAX_LENGTH, None)
    extension = extension.raising({MAX_LENGTH: limit}, text.max_position_embeddings)
    parts = [rotation.part for rotation in extension.rotations]
    rotaries = find_rotaries(base, parts)
    for rotary in rotaries:
        for part in parts:
            require_matching(rotary, part)
    within = text is not config and not family_of(text.model_type).reads_images_as_text
    if extension.late is not None and (len(rotaries) > 1 or within):
        kind = f"{len(rotaries)} rotary modules" if len(rotaries) > 1 else f"the text decoder of a {config.model_type}"
        raise UnsupportedModelError(
            f"{text.model_type}: {extension.late.name} needs a text model with one rotary module, got {kind}; "
            f"{extension.late.remedy}"
        )
    sharpened = [
        layer
        for rotation in extension.rotations
        for layer in find_softmax(base, rotation.part, stated_for(rotation, extension))
    ]
    return PatchPlan(base, rotaries, sharpened, extension)


def commit(plan: PatchPlan, start: Snapshot) -> None:
    """Carry out a plan, verify it, and show on the model that it does what it claims.

    Within `_all_or_nothing`, which puts `start` back after an error.

    Raises:
        UnsupportedModelError: a method that acts in attention, and layers that it cannot be put into.
        VerificationError: the module's cos and sin are not those of the plan, or the model does not do what the plan
            claims.
    """
    config, extension = config_of(plan.model), plan.extension
    text = text_of(config)
    modules = [rotary.module for rotary in plan.rotaries]
    shown = of_class(plan.model, modules[0], late=extension.late is not None) or {}
    restless: set[str] = set()
    last = last_position(extension.record.original_length, extension.record.target_length)
    proof = Proof(plan.model, modules, text.model_type, last)
    claim = None
    if not shown:
        proof.find_layers()
        start.restore()
        # Transformers' length-dependent types write into their buffers whenever they are read, and go on from there
        proof.read_unpatched()
        claim = claimed(plan, proof.last)  # now that frequencies which depend on length are those of that place
        restless = set(start.differences())
        if extension.late is None:
            proof.read_near()
            restless |= set(start.differences())
        start.restore()
    probe = None
    if extension.late is not None:
        probe = Probe(plan.model, modules[0], extension.rotations[0].part, extension.late, proof.watch)
        start.restore()  # what reading has changed, as above
    standing = Patch(extension.record, [Substitution(module, extension.rotations) for module in modules])
    modules[0].__dict__[FIELD] = standing
    say(plan, standing, extension)  # PhiMoE reads its config whenever it rotates
    if probe is not None:  # first, since its readings before and after have one softmax scale
        standing.late = probe.put()
    # a layer that keeps its rotation keeps the scale that belongs to it
    if sharpened := [(layer, scaling) for layer, scaling in plan.sharpened if KEPT not in layer.__dict__]:
        layers, scalings = map(list, zip(*sharpened, strict=True))
        standing.sharpening = Sharpening(layers, scalings)
    for rotary, substitution in zip(plan.rotaries, standing.substitutions, strict=True):
        verify(rotary, extension, text, substitution.device)
    if claim is not None:
        shown = proven(plan, standing, proof, claim, start, restless)
    done = dataclasses.replace(extension.record, proof=shown)
    say(plan, standing, dataclasses.replace(extension, record=done))


def proven(
    plan: PatchPlan, standing: Patch, proof: Proof, claim: Claim, start: Snapshot, restless: set[str]
) -> dict[str, Any]:
    """What was shown of a patch that stands: it is read, taken out, and put back as it stood.

    `restless` names what reading the unpatched model changes by itself.

    Raises:
        VerificationError: the model does not do what the plan claims, or does not become what it was.
    """
    proof.read_patched(claim)
    patched = Snapshot(plan.model)
    # where a late method acts is known from the layers themselves
    rotating = {
        layer
        for layer in proof.watch.layers
        if any(module.__dict__.get(LAYOUT) and KEPT not in module.__dict__ for module in layer.modules())
    }
    standing.undo(plan.model)
    for difference in set(start.differences()) - restless:
        raise VerificationError(
            f"{claim.model_type}: {claim.method} must leave no trace when it is taken out, got another {difference}; "
            f"this version cannot patch it, and the model was left as it was"
        )
    proof.read_undone(claim)
    start.restore()
    patched.restore()
    return proof.shown(claim, rotating if claim.late else None)


def say(plan: PatchPlan, standing: Patch, extension: Extension) -> None:
    """Say in the model and in its configs what was done."""
    standing.record = extension.record
    extension.write(text_of(config_of(plan.model)))
    for name in extension.record.generation:
        setattr(plan.model.generation_config, name, extension.record.target_length)


def claimed(plan: PatchPlan, last: int) -> Claim:
    """What a plan says that the model will do to a token at position `last`, from its mathematics alone."""
    extension, done = plan.extension, plan.extension.record
    change = 0.0
    for rotation in extension.rotations:
        for rotary in plan.rotaries if not rotation.as_it_is else ():
            before = live_spectrum(rotary.module, rotation.part.prefix, last)
            late = extension.late
            after = effective(rotation.spectrum, rotation.part.config)
            own = change_when_read(before, late, last) if late else change_of_spectrum(before, after, last)
            change = max(change, own)
    if plan.sharpened:
        change = math.inf
    return Claim(
        model_type=text_of(config_of(plan.model)).model_type,
        method=done.method,
        labels=frozenset(rotation.part.label for rotation in extension.rotations),
        change=change,
        late=extension.late is not None,
        embeds=extension.late is not None and extension.late.method.embeds,
        windowed=extension.late is not None and extension.late.method.beside().window is not None,
    )


def verify(rotary: Rotary, extension: Extension, config: PreTrainedConfig, device: torch.device) -> None:
    """Compare a module's cos and sin with those of the plan, near both ends of both lengths.

    Raises:
        VerificationError: they differ, or the module fails.
    """
    done, model_type = extension.record, config.model_type
    near = min(done.original_length, done.target_length)
    positions = torch.tensor([0, 1, near // 2, near - 1, done.target_length - 1], device=device)
    rotations = [rotation for rotation in extension.rotations if not rotation.as_it_is]
    try:
        differences = [deviation(rotary.module, rotation, positions) for rotation in rotations]
    except Exception as error:
        raise VerificationError(
            f"{model_type}: the rotary module {rotary.name!r} must run with {done.method}, got "
            f"{type(error).__name__}: {error}; this version cannot patch it, and the model was left as it was"
        ) from error
    for difference, rotation in zip(differences, rotations, strict=True):
        if difference <= TOLERANCE * rotation.spectrum.attention_factor:
            continue
        raise VerificationError(
            f"{model_type}: the rotary module {rotary.name!r} must give the cos and sin of {done.method}, got a "
            f"difference of {difference:.3g}; it does not read its frequencies from its buffer, so this version "
            f"cannot patch it, and the model was left as it was"
        )
