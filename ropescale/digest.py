"""A digest of a base's weights: which model an adapter was trained on, as far as a few of its numbers tell.

From up to 64 tensors four values each, taken at fixed places, with the tensor's shape and type: some 6 kB, read in no
time. Other weights under the same config differ in nearly every one of them. The same weights are recognised whatever
files they lie in, and in another type up to the rounding of that type; what a quantised base keeps in float (norms,
embeddings) is compared, the rest is not.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

TENSORS, VALUES = 64, 4
# Types whose values are the weights themselves, and their rounding: half a unit in the last place, relative
ROUNDING = {torch.float64: 2.0**-24, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11}
SMALLEST = 2.0**-24  # what float16 rounds to zero
# of the modules that PEFT puts around those of the base
WRAPPERS = ("base_layer", "original_module", "_orig_mod")


def digest_of(base: nn.Module, *, without: set[int]) -> dict[str, list[Any]]:
    """The type, the shape and some values of some tensors of a model, by their names in a base without an adapter.

    Args:
        base: a model, with or without an adapter on it.
        without: the `id` of parameters that are not the base's as it was: what an adapter brings, what was trained.
    """
    own = _own(base, without)
    return {name: _described(own[name]) for name in _chosen(own)}


def digest_of_files(files: Iterable[str]) -> dict[str, list[Any]]:
    """The same of the files of a checkpoint, by the names that tensors have there.

    Raises:
        OSError, SafetensorError: a file that cannot be read.
    """
    described: dict[str, list[Any]] = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in _chosen(weights.keys()):
                tensor = weights.get_tensor(name)
                if tensor.dtype in ROUNDING and tensor.numel():
                    described[name] = _described(tensor)
    return described


def bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """All bytes of a tensor, or of the tensors that a quantised one is made of."""
    tensor = tensor.detach()
    if type(tensor.data) is not Tensor and hasattr(tensor, "__tensor_flatten__"):
        parts, _ = tensor.__tensor_flatten__()
        for part in parts:
            yield from bytes_of(getattr(tensor, part))
    else:
        yield tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _chosen(names: Iterable[str]) -> list[str]:
    """Up to `TENSORS` of some names, evenly from the first to the last."""
    every = sorted(names)
    places = (place * (len(every) - 1) // max(TENSORS - 1, 1) for place in range(TENSORS if every else 0))
    return list(dict.fromkeys(every[place] for place in places))


def _described(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), _values(tensor)]


def differing(base: nn.Module, digest: dict[str, list[Any]]) -> tuple[list[str], int]:
    """The tensors of a model that are not those of a digest, and how many could be compared."""
    own = _own(base, set())
    other, compared = [], 0
    for name, (dtype, shape, values) in digest.items():
        tensor = own.get(name)
        if tensor is None or list(tensor.shape) != shape:
            continue
        compared += 1
        rounding = max(ROUNDING[tensor.dtype], ROUNDING[getattr(torch, dtype)])
        found, expected = torch.tensor(_values(tensor)), torch.tensor(values)
        # twice, since it may have been rounded by one type after the other
        if not bool(((found - expected).abs() <= 2 * rounding * expected.abs() + SMALLEST).all()):
            other.append(name)
    return other, compared


def _own(base: nn.Module, without: set[int]) -> dict[str, Tensor]:
    """The parameters of the base that are whole and in a type that holds the weights themselves."""
    own: dict[str, Tensor] = {}
    for name, weight in base.named_parameters():
        parts = name.split(".")
        if id(weight) in without:
            continue
        # a part of a tensor that several processes hold says nothing about the whole
        if weight.dtype not in ROUNDING or not weight.numel() or weight.is_meta or type(weight.data) is not Tensor:
            continue
        own[".".join(part for part in parts if part not in WRAPPERS)] = weight
    return own


def _values(tensor: Tensor) -> list[float]:
    flat = tensor.detach().reshape(-1)
    places = torch.tensor([(2 * value + 1) * flat.numel() // (2 * VALUES) for value in range(VALUES)])
    return [float(value) for value in flat[places.to(flat.device)].float().cpu()]
