"""A PEFT adapter on its base: put on with every key and value checked, taken off, and added into the weights.

PEFT merges what it is given. Keys that match nothing, layers that are missing and values that are not finite pass it
without an error, and on a base whose head reads the embedding a merge changes both where the adapter changed one. Here
they are refused, or the two are separated; and what was merged is run against the adapter before it counts.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropescale.adapter_files import CONFIG_FILE
from ropescale.errors import CheckpointError, shortened
from ropescale.families.parts import text_of
from ropescale.injection.snapshot import Snapshot
from ropescale.wrappers import bare

if TYPE_CHECKING:
    from peft import PeftModel

# Of the modules that PEFT puts around those of the base
WRAPPERS = ("base_layer", "original_module", "modules_to_save", "token_adapter", "default")
PROBED = 48  # tokens
# The largest difference of an output that is rounding, in parts of the largest output. A merge into the wrong of two
# tied layers is off by a tenth and more
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def attached(
    base: PreTrainedModel, path: str | Path, *, trainable: bool = False, notice: str = "", **finding: Any
) -> "PeftModel":
    """Wrap a model in the adapter of a folder or hub id; where it does not fit, the model is without one again.

    A base whose vocabulary has another size than the one that the adapter brings along is resized to it.

    Args:
        base: without an adapter.
        path: the adapter's folder or hub id.
        trainable: go on training it; else it is frozen.
        notice: a key of its config that is no fault.
        **finding: what finds its files.

    Raises:
        CheckpointError: an adapter that PEFT cannot read, or that does not fit the base: keys that match nothing in
            it, layers that are missing, values that are not finite, other shapes.
    """
    from peft import PeftConfig, get_peft_model, load_peft_weights

    with warnings.catch_warnings():
        # the notice is for others, and so is PEFT's remark that the base has another name: the caller chose it
        warnings.filterwarnings("ignore", message=rf"Unexpected keyword arguments \['{notice}'\]")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT reads it
        warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
        # which is what `merged_into` sees to
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer is part")
        try:
            config = PeftConfig.from_pretrained(str(path), **finding)
            weights = load_peft_weights(str(path), device="cpu", **finding)
        except Exception as error:  # whatever PEFT's code runs into in files that may be anybody's
            raise CheckpointError(
                f"{path}: must hold an {CONFIG_FILE} and weights that this version of PEFT reads, got "
                f"{type(error).__name__}: {shortened(str(error).strip())}; save the adapter again"
            ) from error
        if config.is_prompt_learning:
            raise beside(path, config.peft_type)
        require_finite(weights, path)
        config.inference_mode = not trainable
        wrapped: Any = None
        with _resized(base, weights):
            try:
                wrapped = get_peft_model(base, config)
                loading = wrapped.load_adapter(str(path), "default", is_trainable=trainable, **finding)
                missing = [*loading.missing_keys, *_missing(wrapped, weights)]
                # PEFT saves a resized embedding that it trains in whole under two names
                extra = [
                    name
                    for name in loading.unexpected_keys
                    if ".modules_to_save." not in name or name.replace(".modules_to_save.", ".") not in weights
                ]
                if missing or extra:
                    what = f"no values for {missing[0]!r}" if missing else f"values for {extra[0]!r}, which it has not"
                    raise LookupError(f"{what} ({len(missing or extra)} such)")
            except Exception as error:  # of every tuner's own code
                if wrapped is not None and hasattr(wrapped, "unload"):
                    wrapped.unload()
                raise CheckpointError(
                    f"{path}: the adapter's weights must fit the base, got {type(error).__name__}: "
                    f"{shortened(str(error).strip())}; give the base that {CONFIG_FILE} names, or where this is it, "
                    f"save the adapter again"
                ) from error
    whole: PeftModel = wrapped
    return whole


@contextlib.contextmanager
def lent(base: PreTrainedModel, again: Callable[[], nn.Module]) -> Iterator[None]:
    """A base that is as it was after the block, whatever adapters made of it.

    PEFT's own way back leaves what an adapter has in full in the base's place, an embedding that was resized, and
    weights that some kinds of adapter begin by writing over.

    Args:
        base: without an adapter.
        again: the same model anew, from which weights are read that were written over.
    """
    start = Snapshot(base)
    held = [(module._parameters, dict(module._parameters)) for module in base.modules()]
    own = {
        name: (parameter, parameter.data, parameter.requires_grad, _bits(parameter))
        for name, parameter in base.named_parameters()
    }
    try:
        yield
    finally:
        start.restore()
        for live, content in held:
            live.clear()
            live.update(content)
        fresh: dict[str, nn.Parameter] = {}
        for name, (parameter, data, trained, bits) in own.items():
            parameter.data = data
            parameter.requires_grad_(trained)
            if _bits(parameter) != bits:
                fresh = fresh or dict(again().named_parameters())
                parameter.data.copy_(fresh[name].data)


def _bits(tensor: Tensor) -> int:
    """A number that is another one where a value is."""
    if tensor.is_meta or not tensor.numel():
        return 0
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(kind).sum(dtype=torch.int64))


def require_in_layers(wrapped: Any, path: str | Path) -> None:
    """Refuse an adapter that acts when PEFT's model is called, and not when its base is.

    Raises:
        CheckpointError: one that is no part of the layers, such as one that waits for certain tokens.
    """
    base = bare(wrapped)
    ids = _probe(wrapped, base)
    whole, layers = _outputs(wrapped, ids), _outputs(base, ids)
    if hasattr(wrapped.base_model, "merge_and_unload") and torch.equal(whole, layers):
        return
    raise beside(path, wrapped.active_peft_config.peft_type)


def beside(path: str | Path, kind: Any) -> CheckpointError:
    """The error for an adapter that is not in the layers of its base: prompt tuning and the like."""
    return CheckpointError(
        f"{path}: must be an adapter in the layers of its base, whose weights can be added to the base's, got one of "
        f"type {getattr(kind, 'value', kind)}, which acts beside them; load it with peft.PeftModel.from_pretrained"
    )


def require_finite(weights: dict[str, Tensor], path: str | Path) -> None:
    """Refuse values that are not numbers.

    Raises:
        CheckpointError: one is infinite or NaN.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(
                f"{path}: every value must be finite, got NaN or infinity in {name!r}; train it again from a "
                f"checkpoint before they arose"
            )


def _missing(wrapped: Any, weights: dict[str, Tensor]) -> list[str]:
    """The modules that an adapter has in full and its file does not hold, which PEFT passes over."""
    from peft import get_peft_model_state_dict

    whole = [f"{name}." for name, module in wrapped.named_modules() if hasattr(module, "modules_to_save")]
    expected = get_peft_model_state_dict(wrapped, adapter_name="default", save_embedding_layers=False)
    return [name for name in expected if name not in weights and any(name.startswith(prefix) for prefix in whole)]


@contextlib.contextmanager
def _resized(base: PreTrainedModel, weights: dict[str, Tensor]) -> Iterator[None]:
    """A base with as many rows in its embedding as an adapter brings along; as it was where the block fails."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    brought = _rows(base, embedding, weights)
    before = embedding.weight.shape[0] if isinstance(embedding, nn.Embedding) else None
    if brought is None or before is None or brought == before:
        yield
        return
    apart = isinstance(head, nn.Linear) and head.weight is not embedding.weight
    if apart and _rows(base, head, weights) != brought:
        raise CheckpointError(
            f"adapter: must bring the head of its {brought:,} tokens along, where the embedding of its base has "
            f"{before:,} and the head is not the embedding, got none; save it with save_embedding_layers=True"
        )
    modules = [module for module in (embedding, head) if module is not None]
    kept = [(module, dict(module.__dict__), dict(module._parameters)) for module in modules]
    data = [
        (parameter, parameter.data)
        for _, _, parameters in kept
        for parameter in parameters.values()
        if parameter is not None
    ]
    base.resize_token_embeddings(brought, mean_resizing=False)
    try:
        yield
    except BaseException:
        base.set_input_embeddings(embedding)
        if head is not None:
            base.set_output_embeddings(head)
        for module, fields, parameters in kept:
            module.__dict__.update(fields)
            module._parameters.update(parameters)
        for parameter, values in data:
            parameter.data = values
        for config in _configs(base):
            if hasattr(config, "vocab_size"):
                config.vocab_size = before
        raise


def _rows(base: nn.Module, module: nn.Module | None, weights: dict[str, Tensor]) -> int | None:
    """How many rows an adapter brings along for a module; None where it brings none."""
    place = next((name for name, inner in base.named_modules() if inner is module), None)
    names = [f"base_model.model.{place}.{part}weight" for part in ("", "base_layer.")]
    return next((len(weights[name]) for name in names if name in weights), None)


def merged_into(wrapped: Any, adapter: str | Path) -> PreTrainedModel:
    """The base of a PEFT model with its adapter added into its weights, run against the adapter.

    Where the head reads the embedding and the adapter changed one of the two, they are separated: the model has both,
    and its config says so.

    Raises:
        CheckpointError: an adapter that cannot be merged, gives weights that are not finite, or computes something
            that weights cannot say.
    """
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise beside(adapter, wrapped.active_peft_config.peft_type)
    base = bare(wrapped)
    ids = _probe(wrapped, base)
    before = _outputs(wrapped, ids)
    shared = _separated(base)
    ties = [
        (config, config.tie_word_embeddings) for config in _configs(base) if hasattr(config, "tie_word_embeddings")
    ]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied after merging")
            model: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # of every tuner's own code
        raise CheckpointError(
            f"{adapter}: must be an adapter whose weights can be added to the base's, got {error}; load it with "
            f"ropescale.load_adapter instead"
        ) from error
    for config, tied in ties:  # PEFT takes the copies for parameters that differ
        config.tie_word_embeddings = tied
    _joined(model, shared, adapter)
    after = _outputs(model, ids)
    rounding = ROUNDING.get(model.dtype)
    if rounding is not None and not getattr(model, "is_quantized", False):
        off = float((after - before).abs().max() / before.abs().max().clamp(min=1e-6))
        if not off <= rounding:
            raise CheckpointError(
                f"{adapter}: must be an adapter whose weights can be added to the base's, got outputs that are off by "
                f"{off:.1g} of the largest once they are; load it with ropescale.load_adapter instead"
            )
    return model


def reads_embedding(model: nn.Module) -> bool:
    """Whether the head of a model is its embedding: the same numbers, whatever the config says."""
    if not isinstance(model, PreTrainedModel):
        return False
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    ours, theirs = getattr(head, "weight", None), getattr(embedding, "weight", None)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return False
    return ours is theirs or ours.data_ptr() == theirs.data_ptr() or bool(torch.equal(ours, theirs))


def _probe(wrapped: Any, base: PreTrainedModel) -> Tensor:
    """[1, tokens]: ids to run a model on, those that the adapter trained among them."""
    embedding = base.get_input_embeddings()
    size = int(getattr(embedding, "num_embeddings", 0) or text_of(base.config).vocab_size)
    ids = torch.randint(size, (PROBED,), generator=torch.Generator().manual_seed(0))
    trained = getattr(wrapped.active_peft_config, "trainable_token_indices", None) or getattr(
        wrapped.active_peft_config, "token_indices", None
    )
    chosen = next(iter(trained.values()), []) if isinstance(trained, dict) else trained or []
    for place, token in zip(range(0, PROBED, 2), chosen, strict=False):
        ids[place] = token
    awaited = getattr(wrapped.active_peft_config, "alora_invocation_tokens", None) or []
    ids[PROBED // 2 : PROBED // 2 + len(awaited)] = torch.tensor(awaited[: PROBED // 2], dtype=ids.dtype)
    device = next(
        (parameter.device for parameter in embedding.parameters() if not parameter.is_meta), torch.device("cpu")
    )
    return ids[None].to(device)


@torch.no_grad()
def _outputs(model: nn.Module, ids: Tensor) -> Tensor:
    """What a model computes: logits, or states of a model without a head, in float32."""
    training = model.training
    try:
        given = model.eval()(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
    output = next(value for value in given.values() if isinstance(value, Tensor) and value.is_floating_point())
    return output.float().cpu()


Place = tuple[str, str]  # of a parameter: its module in a base without an adapter, and its name there


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _separated(base: nn.Module) -> list[list[Place]]:
    """Give modules that share a parameter which an adapter changes in one of them a copy each; which they are."""
    holders: dict[int, list[tuple[str, str, nn.Module]]] = {}
    for name, module in base.named_modules():
        for field, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((name, field, module))
    separated = []
    for group in holders.values():
        if len(group) > 1 and any(_plain(name) != name for name, _, _ in group):
            for _, field, module in group[1:]:
                parameter = module._parameters[field]
                assert parameter is not None
                module._parameters[field] = nn.Parameter(
                    parameter.detach().clone(), requires_grad=parameter.requires_grad
                )
            separated.append([(_plain(name), field) for name, field, _ in group])
    return separated


def _joined(model: PreTrainedModel, shared: list[list[Place]], adapter: str | Path) -> None:
    """Let modules share their parameter again where it is the same after all; else the config says that they do not.

    Raises:
        CheckpointError: modules that a config cannot separate.
    """
    for group in shared:
        places = list(dict.fromkeys(group))
        modules = [model.get_submodule(name) for name, _ in places]
        values = [module._parameters[field] for module, (_, field) in zip(modules, places, strict=True)]
        first = values[0]
        assert first is not None
        if all(value is not None and torch.equal(value, first) for value in values):
            for module, (_, field) in zip(modules, places, strict=True):
                module._parameters[field] = first
            continue
        pair = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        if {id(module) for module in modules} != pair:
            raise CheckpointError(
                f"{adapter}: must be an adapter whose weights can be added to the base's, got one that changes "
                f"{places[0][0]!r} and not {places[-1][0]!r}, which are one in a {type(model).__name__}; load it "
                f"with ropescale.load_adapter instead"
            )
        separate(model)


def _configs(model: PreTrainedModel) -> tuple[Any, ...]:
    return model.config, text_of(model.config)


def separate(model: PreTrainedModel) -> None:
    """Let a model and its config say that its head does not read its embedding."""
    for config in _configs(model):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
