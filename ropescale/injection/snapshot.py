"""A live model's structure, noted so that it can be put back whatever happened meanwhile.

A patch, its proof and its undoing change attributes, buffers, hooks, modules and configs at many places, and an
interruption may come between any two of them. So none of these steps cleans up after itself: whoever begins takes a
snapshot, and puts it back when anything goes wrong.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

CONFIGS = (GenerationConfig, PreTrainedConfig)


class Snapshot:
    """What every module of a model holds: attributes, buffers, hooks, submodules; and the fields of every config.

    Parameters are left alone: a patch changes none, and where they are offloaded they come and go. The frequencies of
    rotary modules are copied, because Transformers' length-dependent types write into them whenever they run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, vars(module), _held(module)) for module in model.modules()]
        self._configs: list[tuple[Any, dict[str, Any]]] = [
            (vars(config), dict(vars(config))) for config in configs_in(model)
        ]
        self._frequencies = [
            (tensor, tensor.detach().clone())
            for module in model.modules()
            for name, tensor in module._buffers.items()
            if tensor is not None and name.endswith("inv_freq") and not tensor.is_meta
        ]

    def restore(self) -> None:
        """Put everything back that is not as it was; may be called again after an interruption."""
        for _, attributes, (own, inner) in self._modules:
            _replace(attributes, own)
            for name, content in inner.items():
                _replace(own[name], content)
        for fields, before in self._configs:
            _replace(fields, before)
        with torch.no_grad():
            for tensor, values in self._frequencies:
                if not _same(tensor, values):
                    tensor.copy_(values)

    def differences(self) -> Iterator[str]:
        """Where the model is not as it was, in words."""
        for module, attributes, (own, inner) in self._modules:
            names = [name for name in {**own, **attributes} if attributes.get(name, self) is not own.get(name, self)]
            names += [name for name, content in inner.items() if not _identical(own[name], content)]
            yield from (f"{name} of {type(module).__name__}" for name in names)
        for fields, before in self._configs:
            yield from (f"config.{name}" for name in {**before, **fields} if not _equal(fields, before, name))
        yield from ("frequencies" for tensor, values in self._frequencies if not _same(tensor, values))


def configs_in(model: nn.Module) -> list[Any]:
    """The configs that the modules of a model hold, and the parts of those, each once."""
    configs: dict[int, Any] = {}
    waiting = [entry for module in model.modules() for entry in _configs_among(vars(module))]
    while waiting:
        config = waiting.pop()
        if id(config) not in configs:
            configs[id(config)] = config
            waiting += _configs_among(vars(config))
    return list(configs.values())


def _configs_among(attributes: Any) -> list[Any]:
    return [value for value in attributes.values() if isinstance(value, CONFIGS)]


def _held(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[Any, Any]]]:
    """The attributes of a module, and what its dicts among them hold (buffers, hooks, submodules)."""
    own = dict(vars(module))
    return own, {name: dict(value) for name, value in own.items() if isinstance(value, dict) and name != "_parameters"}


def _replace(live: dict[Any, Any], content: dict[Any, Any]) -> None:
    """Make a dict hold what another one does, in the same order; nothing is touched where it does already."""
    for name in [name for name in live if name not in content]:
        del live[name]
    for name, value in content.items():
        if name not in live or live[name] is not value:
            live[name] = value
    if list(live) != list(content):
        live.clear()
        live.update(content)


def _identical(live: dict[Any, Any], content: dict[Any, Any]) -> bool:
    return list(live) == list(content) and all(live[name] is value for name, value in content.items())


def _equal(fields: dict[str, Any], before: dict[str, Any], name: str) -> bool:
    if name not in fields or name not in before:
        return False
    one, other = fields[name], before[name]
    # a part that is a config of its own is compared for itself, and some configs refuse to be compared
    return one is other or (not isinstance(one, CONFIGS) and bool(one == other))


def _same(tensor: Tensor, values: Tensor) -> bool:
    return tensor.device == values.device and torch.equal(tensor, values)
