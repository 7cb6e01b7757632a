"""What of a model a recipe trains: everything, or adapters beside it.

Parameters that a method added to the model (tables and vectors of t5, shaw, cope, learned) are trained by all of them.
Of a vision-language model the text decoder and the head are trained: the rest reads no text, and gets no gradients.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable

from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel

from ropescale.adapter_files import record_of
from ropescale.adapters import load_adapter, put_on
from ropescale.checkpoint import added_parameters
from ropescale.errors import InvalidArgumentError, UnsupportedModelError
from ropescale.families.parts import text_of
from ropescale.loading import Loading
from ropescale.recipes.options import Recipe, RecipeOptions
from ropescale.wrappers import bare


def loading(recipe: Recipe) -> Loading:
    """How the model of a recipe is loaded.

    Raises:
        InvalidArgumentError: weights held in a way for which no package is here, or layers over the devices of one
            process where there are several processes.
    """
    options, training = recipe.options, recipe.training
    quantization = options.quantization
    if options.tuning == "qlora" and quantization is None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InvalidArgumentError(
                "tuning: qlora needs bitsandbytes, got no package of that name; pip install 'ropescale[qlora]', or "
                "use lora"
            )
        quantization = "bnb-4bit"
    if options.device_map is not None and training.world_size > 1:
        raise InvalidArgumentError(
            f"device_map: is of one process, got {options.device_map!r} in a launch of {training.world_size}; leave "
            f"it out, and let the launch share the weights"
        )
    return Loading(
        dtype=options.dtype_name,
        device="auto" if options.device_map else str(training.device),
        device_map=options.device_map,
        quantization=quantization,
        revision=options.revision,
        attention=options.attention,
    )


def require_held(model: nn.Module, device_map: str | None) -> None:
    """Refuse weights that are brought to a device when they are read: what a step changes of them is lost.

    Raises:
        InvalidArgumentError: such weights.
    """
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise InvalidArgumentError(
            f"device_map: must keep all weights on devices where a model is trained, got {device_map!r}, which leaves "
            f"{away[0]} and {len(away) - 1} more elsewhere; take more devices, or tuning qlora"
        )


def tuned(model: PreTrainedModel, options: RecipeOptions) -> PreTrainedModel | PeftModel:
    """The model with the parameters of this tuning set to be trained: itself, or under PEFT.

    Raises:
        InvalidArgumentError: target modules that the model does not have.
        UnsupportedModelError: no linear layers in attention were found.
        CheckpointError: an adapter that is damaged or does not fit.
    """
    if options.tuning == "full":
        parts = (decoder(model), model.get_output_embeddings())
        reading = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in reading:
                parameter.requires_grad_(False)
        return model
    if options.tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if options.adapter is not None:
        carried = record_of(options.adapter) is not None
        going_on = (load_adapter if carried else put_on)(model, options.adapter, trainable=True)
        for parameter in added_parameters(bare(going_on)).values():
            parameter.requires_grad_(True)
        return going_on
    plus = options.tuning == "lora_plus"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.target_modules or attention_layers(model),
        modules_to_save=[*norms(model), *embeddings(model)] if plus else None,
        ensure_weight_tying=plus and bool(model.config.get_text_config().tie_word_embeddings),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT reads it
            made = get_peft_model(model, config)
    except ValueError as error:
        raise InvalidArgumentError(
            f"target_modules: must name layers of the model, got {options.target_modules} "
            f"({' '.join(str(error).split())[:200]}); leave them out for attention's linear layers"
        ) from error
    for parameter in added_parameters(bare(made)).values():
        parameter.requires_grad_(True)
    return made


def unpack(model: nn.Module) -> None:
    """Undo what bitsandbytes does to 4-bit weights that are read in evaluation mode on a CPU.

    It packs them for a kernel that passes no gradients, and leaves them so when training goes on; asking for the
    weights is its public way back.
    """
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        model.state_dict()


def decoder(model: PreTrainedModel) -> nn.Module:
    """What of a model reads text: the text decoder of a vision-language model, else all of it."""
    part: nn.Module = model if text_of(model.config) is model.config else model.get_decoder()
    return part


def attention_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside attention modules.

    Raises:
        UnsupportedModelError: none.
    """
    layers = _named(
        model,
        (
            layer
            for module in decoder(model).modules()
            if "attention" in type(module).__name__.lower()
            for layer in module.modules()
            if isinstance(layer, nn.Linear)
        ),
    )
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__}: attention must have linear layers for LoRA, got none; name layers with "
            f"target_modules=[NAME]"
        )
    return layers


def norms(model: PreTrainedModel) -> list[str]:
    """Names of the normalisation layers."""
    return _named(model, (module for module in decoder(model).modules() if "norm" in type(module).__name__.lower()))


def embeddings(model: PreTrainedModel) -> list[str]:
    """The name of the input embeddings."""
    return _named(model, [model.get_input_embeddings()])


def _named(model: PreTrainedModel, modules: Iterable[nn.Module]) -> list[str]:
    """Names by which PEFT finds these modules of the decoder: the last part, which all layers share.

    In full in a vision-language model, where modules of the vision tower have the same last parts.
    """
    wanted = {id(module) for module in modules}
    names = [name for name, module in model.named_modules() if id(module) in wanted]
    return sorted(names if decoder(model) is not model else {name.rpartition(".")[2] for name in names})
