"""Patched models: what the tests of patching share."""

import torch
from families import (
    knobs_for,
)

import ropescale


def patched_with(model: torch.nn.Module, method: str, **arguments: object) -> torch.nn.Module:
    pairs = ropescale.read_geometry(getattr(model, "config", None)).pairs
    return ropescale.patch(model, method, factor=4, **knobs_for(method, pairs), **arguments)


def rotary_of(model: torch.nn.Module) -> torch.nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
