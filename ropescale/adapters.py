"""PEFT adapters that carry their scaling, and plain ones: the directory of an adapter says how its base was patched.

Beside what PEFT saves there are `ropescale.json`, the record, and, where the method or the training changed parameters
that are not the adapter's own, `ropescale.safetensors`. One more key in `adapter_config.json` makes PEFT warn when
it loads the adapter by itself. An adapter without a record, whoever trained it, is a plain one: it goes on its base as
that is, or on its base patched in any way.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from ropescale.adapter_bases import (
    digest_of_base,
    require_named_base,
    require_same_base,
    require_same_patch,
    require_same_weights,
    saved_by_peft,
)
from ropescale.adapter_files import (
    CONFIG_FILE,
    PARAMETERS_FILE,
    RECORD_FILE,
    file_of,
    labels_of,
    named_base,
    read_record,
    record_of,
    tokenizer_of,
)
from ropescale.cards import CARD, card, write_card
from ropescale.checkpoint import added_parameters, from_weights, located, size_of
from ropescale.checkpoints import resolve
from ropescale.checks import require_path
from ropescale.contents import FINDING
from ropescale.destinations import replaced, require_new, write_file, written_whole
from ropescale.errors import CheckpointError, InvalidArgumentError, NotPatchedError
from ropescale.files import read_json
from ropescale.heads import class_of
from ropescale.injection.saving import card_of
from ropescale.limits import raise_limits
from ropescale.merging import attached, merged_into, require_finite
from ropescale.patching import record, record_in_effect, repatch, unpatch
from ropescale.records import Record
from ropescale.wrappers import bare

if TYPE_CHECKING:
    from peft import PeftModel

TEMPLATE_FILE = "chat_template.jinja"
# What PEFT calls the task of an adapter, and the class of the base that it was trained on; whatever predicts tokens
# is the base as it is
TASKS: dict[str, Any] = {
    "FEATURE_EXTRACTION": AutoModel,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}
PROCESSOR_FILES = (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)  # how images become tokens
# PEFT names a key that it does not know in a warning, and does nothing else about it: so the key is the message.
NOTICE = "trained with rescaled positions: load it with ropescale.load_adapter"


def save_adapter(model: "PeftModel", path: str | Path) -> Path:
    """Save the active adapter of a patched model with its scaling, for `load_adapter`; returns the folder.

    The folder is complete or not there at all.

    Raises:
        InvalidArgumentError: not a PEFT model with one active adapter, or a folder that is not empty.
        NotPatchedError: the base is not patched.
        CheckpointError: the folder cannot be written.
    """
    name = getattr(model, "active_adapter", None)
    if not isinstance(name, str) or not hasattr(model, "peft_config"):
        raise InvalidArgumentError(
            f"model: must be a PEFT model with one active adapter, got {type(model).__name__}; wrap it with "
            f"peft.get_peft_model(model, config) first"
        )
    _live_record(model)
    require_new(Path(path), name="path")
    with written_whole(Path(path), name="path") as work:
        work.mkdir()
        model.save_pretrained(str(work), selected_adapters=[name])
        own = work if name == "default" else work / name  # where PEFT puts an adapter of that name
        add_record(model, own)
        if own != work:
            for file in own.iterdir():
                file.rename(work / file.name)
            own.rmdir()
        (work / CARD).unlink(missing_ok=True)  # PEFT's, which leaves everything to be filled in
        base = str(model.peft_config[name].base_model_name_or_path or type(bare(model)).__name__)
        write_card(work, card(_live_record(model), base=base, adapter=True, trained="with PEFT"))
    return Path(path)


def add_record(model: nn.Module, folder: str | Path) -> None:
    """Make an adapter that PEFT has just saved carry its scaling: for trainers, which call PEFT themselves.

    Raises:
        NotPatchedError: the base is not patched.
        CheckpointError: no adapter there, or a folder that cannot be written.
    """
    done = _live_record(model)
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        parameters = _apart(model)
        if parameters:
            with replaced(folder / PARAMETERS_FILE, name="adapter") as work:
                save_file(parameters, work, metadata={"format": "pt"})
        _write_json(folder / RECORD_FILE, dataclasses.replace(done, base=digest_of_base(model)).to_dict())
        _write_json(folder / CONFIG_FILE, {**config, NOTICE: done.method})
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: must be a folder with an adapter that PEFT has saved, and writable, got "
            f"{type(error).__name__}: {error}; save the adapter first"
        ) from error


def load_adapter(
    base: PreTrainedModel | str | Path, path: str | Path, *, trainable: bool = False, **from_pretrained: Any
) -> "PeftModel":
    """A PEFT model whose base is patched as it was when the adapter was trained.

    `base` is a model, or what `ropescale.load` loads, with the further keywords. A model is patched in place unless it
    is patched in the same way already; where anything fails it is as it was. Parameters that were trained beside
    the adapter (those that a method adds among them) are copied into the base. What is loaded has the head that the
    adapter was trained with: a classifier for one with `task_type="SEQ_CLS"`, also where the base is a language model.

    Args:
        base: the model that the adapter was trained on, or its path, hub id or short name.
        path: the adapter's folder or hub id.
        trainable: go on training it; else it is frozen and in evaluation mode.
        **from_pretrained: of `ropescale.load`, where `base` is not a model.

    Example:
        >>> import ropescale
        >>> from peft import LoraConfig, get_peft_model
        >>> from ropescale.adapters import save_adapter
        >>> model = ropescale.patch(ropescale.load("tiny"), factor=2)
        >>> folder = save_adapter(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), "adapter")
        >>> ropescale.record(ropescale.load_adapter("tiny", folder)).target_length
        256

    Raises:
        CheckpointError: no adapter that carries a record there, or a damaged one.
        InvalidArgumentError: a base whose rotary facts are not those of training.
        AlreadyPatchedError: a base that is patched in another way.
        RopescaleError: whatever `load` and `patch` raise.
    """
    require_path("path:", path)
    finding = {name: from_pretrained[name] for name in FINDING if name in from_pretrained}
    saved = read_record(path, **finding)
    missing: list[str] = []
    if isinstance(base, (str, Path)):
        base, missing = _loaded(base, path, finding, from_pretrained)
    elif from_pretrained:
        raise InvalidArgumentError(
            f"base: must be a path or a name for {', '.join(sorted(from_pretrained))} to have a meaning, got a loaded "
            f"model; leave them out"
        )
    if hasattr(base, "peft_config"):
        raise InvalidArgumentError(
            f"base: must be without an adapter, got a {type(base).__name__}; give base.unload()"
        )
    before = record_in_effect(base)
    if before is not None:
        require_same_patch(before, saved, path)
    else:
        require_same_base(base, saved, path)
    require_same_weights(base, saved, path)
    if before is None:
        repatch(base, saved)
    try:
        wrapped = _with_adapter(base, path, finding, trainable=trainable)
        require_head(base, missing, path)
        return wrapped
    except BaseException:
        if before is None:
            unpatch(base)
        raise


def put_on(base: PreTrainedModel, path: str | Path, *, trainable: bool = False, **finding: Any) -> "PeftModel":
    """A PEFT model of a base as it stands, patched or not, with a plain adapter on it.

    Where anything fails the base is without an adapter again.

    Args:
        base: the model that the adapter was trained on, without an adapter.
        path: the adapter's folder or hub id.
        trainable: go on training it; else it is frozen and in evaluation mode.
        **finding: what finds its files, as in `FINDING`.

    Raises:
        CheckpointError: an adapter that cannot be read, or does not fit the base.
        InvalidArgumentError: a base with other weights than the one that the adapter's config names.
    """
    require_named_base(base, path, finding)
    wrapped = attached(base, path, trainable=trainable, **finding)
    wrapped.train(trainable)
    return wrapped


def merge(
    adapter: str | Path,
    destination: str | Path,
    base: PreTrainedModel | str | Path | None = None,
    **from_pretrained: Any,
) -> Path:
    """Write a full checkpoint: the base, patched, with the adapter added into its weights; returns the folder.

    Transformers loads it with the extended context wherever it can express the method, `ropescale.load` always. The
    base of a plain adapter stays as it is. The tokenizer is the adapter's if there is one beside it, else the base's,
    and so are the chat template and what reads images for a vision-language model. The folder is complete or not there
    at all.

    Args:
        adapter: its folder or hub id.
        destination: a folder that is not there or empty.
        base: as for `load_adapter`; None stands for the one that the adapter's config names.
        **from_pretrained: of `ropescale.load`, such as `dtype`.

    Raises:
        InvalidArgumentError: a destination that holds something.
        CheckpointError: an adapter that cannot be merged or gives weights that are not finite, or a full disk.
        RopescaleError: whatever `load_adapter` raises.
    """
    destination = Path(destination)
    require_new(destination)
    if base is None:
        base = _found_base(adapter)
    source = base.name_or_path if isinstance(base, PreTrainedModel) else resolve(str(base))
    model = merged(base, adapter, **from_pretrained)
    tokenizer = tokenizer_of(adapter) or tokenizer_of(source)
    template = file_of(adapter, TEMPLATE_FILE, {})
    if tokenizer is not None and template is not None:
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    with written_whole(destination, size_of(model)) as work:
        work.mkdir()
        model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        if (done := record(model)) is not None:
            write_card(work, card_of(model, trained="as an adapter, which is merged into the weights"))
            raise_limits(work, done.before["max_position_embeddings"], done.target_length)
        for name in PROCESSOR_FILES:
            if file := file_of(adapter, name, {}) or file_of(source, name, {}):
                shutil.copy(file, work / name)
    return destination


def merged(base: PreTrainedModel | str | Path, adapter: str | Path, **from_pretrained: Any) -> PreTrainedModel:
    """The base, patched as it was when the adapter was trained, with the adapter added into its weights.

    That of a plain adapter is as it is. The arguments are those of `load_adapter`.

    Raises:
        CheckpointError: an adapter that cannot be merged, or gives weights that are not finite.
        RopescaleError: whatever `load_adapter` raises.
    """
    finding = {name: from_pretrained[name] for name in FINDING if name in from_pretrained}
    if record_of(adapter, **finding) is not None:
        return merged_into(load_adapter(base, adapter, **from_pretrained), adapter)
    missing: list[str] = []
    if isinstance(base, (str, Path)):
        base, missing = _loaded(base, adapter, finding, from_pretrained)
    wrapped = put_on(base, adapter, **finding)
    require_head(base, missing, adapter)
    return merged_into(wrapped, adapter)


def _loaded(
    base: str | Path, adapter: str | Path, finding: dict[str, Any], from_pretrained: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """A base with the head that an adapter was trained with, and the parameters of it that are not in its files."""
    place, config, keywords = located(base, from_pretrained)
    trusted = bool(keywords.get("trust_remote_code"))
    loaded = from_weights(place, config, loader_for(config, adapter, trusted=trusted, **finding), keywords)
    return loaded.model, loaded.missing


def loader_for(config: PreTrainedConfig, adapter: str | Path, *, trusted: bool = False, **finding: Any) -> Any:
    """What loads the base of an adapter with the head that the adapter was trained with.

    That is the class of the base, unless the adapter's task is another: a classifier's adapter on a language model
    brings the classifier's head along.

    Args:
        config: of the base; it gets as many labels as the adapter's head has.
        adapter: its folder or hub id.
        trusted: as for `class_of`.
        **finding: what finds its files, as in `FINDING`.

    Raises:
        CheckpointError: a base whose class is not known.
    """
    own = class_of(config, trusted=trusted)
    file = file_of(adapter, CONFIG_FILE, finding)
    kind = TASKS.get(read_json(Path(file)).get("task_type") or "") if file else None
    if kind is None or type(config) not in kind._model_mapping or kind._model_mapping[type(config)] is own:
        return own
    labels = labels_of(adapter, finding)
    if labels is not None and kind is not AutoModel:
        config.num_labels = labels
    return kind


def require_head(base: nn.Module, missing: list[str], adapter: str | Path) -> None:
    """Refuse an adapter that does not bring the head that its base has no weights for.

    Args:
        base: with the adapter on it.
        missing: parameters of the head that the base's checkpoint does not hold.
        adapter: its folder or hub id.

    Raises:
        CheckpointError: a head that would be random.
    """
    for name in missing:
        head = base.get_submodule(name.rpartition(".")[0])
        if not hasattr(head, "modules_to_save"):
            raise CheckpointError(
                f"{adapter}: must hold the head of a {type(base).__name__}, which its base has not, got none for "
                f"{name!r}; give the base that {CONFIG_FILE} names, or train the head too (modules_to_save)"
            )


def _live_record(model: nn.Module) -> Record:
    done = record_in_effect(model)
    if done is None:
        raise NotPatchedError(
            f"model: must be patched for its adapter to carry a record, got an unpatched "
            f"{type(bare(model)).__name__}; save it with model.save_pretrained alone, or call "
            f"ropescale.patch(model) before training"
        )
    return done


def _apart(model: nn.Module) -> dict[str, torch.Tensor]:
    """What belongs to the adapter and PEFT does not save: parameters that a method added or that were trained.

    By the names that they have in a base without adapter.
    """
    base, kept = bare(model), saved_by_peft(model)
    added = {id(parameter) for parameter in added_parameters(base).values()}
    return {
        name.replace(".base_layer.", "."): parameter.detach().contiguous()
        for name, parameter in base.named_parameters()
        if (parameter.requires_grad or id(parameter) in added) and parameter.data_ptr() not in kept
    }


def _with_adapter(base: PreTrainedModel, path: str | Path, finding: dict[str, Any], *, trainable: bool) -> "PeftModel":
    """Wrap a patched base; where the adapter does not fit it, the base is without one again."""
    apart = _read_apart(base, path, finding)
    wrapped = attached(base, path, trainable=trainable, notice=NOTICE, **finding)
    with torch.no_grad():
        for parameter, value in apart:
            parameter.copy_(value)
    return wrapped


def _read_apart(base: nn.Module, path: str | Path, finding: dict[str, Any]) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The base's parameters that were saved beside the adapter, and the values they are to have.

    Raises:
        CheckpointError: they do not fit the base, or are missing although the method adds some.
    """
    own = dict(base.named_parameters())
    missing = set(added_parameters(base))
    pairs = []
    file = file_of(path, PARAMETERS_FILE, finding)
    if file is not None:
        try:
            held = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file}: must be a whole safetensors file, got one that cannot be read ({error}); save the adapter "
                f"again"
            ) from error
        require_finite(held, file)
        for name, value in held.items():
            if name not in own or own[name].shape != value.shape:
                raise CheckpointError(
                    f"{file}: {name} must be a parameter of the base with the shape {list(value.shape)}, got "
                    f"{list(own[name].shape) if name in own else 'none'}; give the base that {CONFIG_FILE} names"
                )
            missing.discard(name)
            pairs.append((own[name], value))
    if missing:
        raise CheckpointError(
            f"{path}: {PARAMETERS_FILE} must hold what the method added to the base, got none for {min(missing)!r}; "
            f"save the adapter with ropescale.adapters.save_adapter"
        )
    return pairs


def _found_base(adapter: str | Path) -> str:
    """The base that an adapter's config names, where it is to be had.

    Raises:
        CheckpointError: none named, or one that is not found.
    """
    named = named_base(adapter)
    try:
        located(named, {})
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter}: the base that its {CONFIG_FILE} names must be found, got {named!r}; give base=MODEL"
        ) from error
    return named


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=2, sort_keys=True) + "\n", name="adapter")
