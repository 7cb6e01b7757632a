"""A model out of its wrappers: torch.compile, DDP, PEFT and pipelines of modules stand around what is patched."""

from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ropescale.errors import InvalidArgumentError


def bare(model: Any) -> nn.Module:
    """The model itself, out of the wrappers of torch.compile, DDP and PEFT, and of modules that hold one model.

    A SentenceTransformer holds a decoder beside its pooling, which answers for some of the decoder's attributes only.

    Raises:
        InvalidArgumentError: not a torch module.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(
            f"model: must be a loaded Transformers model, got {type(model).__name__}; "
            f"load it first, for instance with ropescale.load(path)"
        )
    inner: Any = model
    while True:
        if isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif not isinstance(inner, PreTrainedModel) and len(held := _held(inner)) == 1:
            inner = held[0]
        else:
            return cast(nn.Module, inner)


def _held(module: nn.Module) -> list[nn.Module]:
    """The models of Transformers within a module, and none that is a part of another."""
    held: list[nn.Module] = []
    for child in module.children():
        held += [child] if isinstance(child, PreTrainedModel) else _held(child)
    return held


def config_of(model: nn.Module) -> PreTrainedConfig:
    """The config of a model, out of its wrappers."""
    return cast(PreTrainedConfig, bare(model).config)
