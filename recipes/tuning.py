"""What of a model a recipe trains: everything, or adapters beside it.

Parameters that a method added to the model (tables and vectors of t5, shaw, cope, learned) are trained by all of them.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ropescale.checkpoint import added_parameters
from ropescale.errors import InvalidArgumentError, UnsupportedModelError
from ropescale.patching import bare
from ropescale.recipes.options import RecipeOptions


def loading(options: RecipeOptions) -> dict[str, Any]:
    """The keywords of `ropescale.load` for a recipe.

    Raises:
        InvalidArgumentError: 4-bit weights without bitsandbytes.
    """
    dtype = getattr(torch, options.dtype_name)
    given: dict[str, Any] = {"dtype": dtype}
    if options.attention is not None:
        given["attn_implementation"] = options.attention
    if options.tuning == "qlora":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InvalidArgumentError(
                "tuning: qlora needs bitsandbytes, got no package of that name; pip install 'ropescale[qlora]', or "
                "use lora"
            )
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return given


def tuned(model: PreTrainedModel, options: RecipeOptions) -> PreTrainedModel | PeftModel:
    """The model with the parameters of this tuning set to be trained: itself, or under PEFT.

    Raises:
        InvalidArgumentError: target modules that the model does not have.
        UnsupportedModelError: no linear layers in attention were found.
    """
    if options.tuning == "full":
        return model
    if options.tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
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
    for one in added_parameters(bare(made)).values():
        one.requires_grad_(True)
    return made


def unpack(model: nn.Module) -> None:
    """Undo what bitsandbytes does to 4-bit weights that are read in evaluation mode on a CPU.

    It packs them for a kernel that passes no gradients, and leaves them so when training goes on; asking for the
    weights is its public way back.
    """
    states = (getattr(one, "quant_state", None) for one in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        model.state_dict()


def attention_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside attention modules.

    Raises:
        UnsupportedModelError: none.
    """
    names = {
        child.rpartition(".")[2]
        for module in model.modules()
        if "attention" in type(module).__name__.lower()
        for child, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    if not names:
        raise UnsupportedModelError(
            f"{type(model).__name__}: attention must have linear layers for LoRA, got none; name layers with "
            f"--target-modules"
        )
    return sorted(names)


def norms(model: nn.Module) -> list[str]:
    """Names of the normalisation layers."""
    return sorted(
        {name.rpartition(".")[2] for name, one in model.named_modules() if "norm" in type(one).__name__.lower()}
    )


def embeddings(model: PreTrainedModel) -> list[str]:
    """The name of the input embeddings."""
    table = model.get_input_embeddings()
    return [name.rpartition(".")[2] for name, one in model.named_modules() if one is table]
