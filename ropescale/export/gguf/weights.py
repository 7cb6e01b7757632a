"""What the weights of a file are stored as, and what that makes of them."""

from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from ropescale.checks import require_choice

OUTTYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def kind_of(shape: Sequence[int], outtype: str) -> gguf.GGMLQuantizationType:
    """What a tensor is stored as: vectors in float32, and in float16 what rows of 32 cannot hold."""
    kind = OUTTYPES[outtype]
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return gguf.GGMLQuantizationType.F16
    return kind


def encoded(tensor: Tensor, outtype: str) -> np.ndarray[Any, Any]:
    """A tensor's data as the file holds it."""
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    data: np.ndarray[Any, Any] = gguf.quants.quantize(values, kind_of(tensor.shape, outtype))
    return data


@torch.no_grad()
def stored_as(model: nn.Module, outtype: str) -> None:
    """Rounds a float32 model's matrices to what a file of this type holds, in place."""
    if outtype == "f32":
        return
    for parameter in model.parameters():
        values = gguf.quants.dequantize(encoded(parameter, outtype), kind_of(parameter.shape, outtype))
        parameter.copy_(torch.from_numpy(np.array(values)))


def outtype_for(model: nn.Module, asked: str | None) -> str:
    """The type of a file's matrices: what was asked for, else that of the model.

    Raises:
        InvalidArgumentError: no such type.
    """
    if asked is not None:
        require_choice("outtype:", asked, OUTTYPES, remedy="leave it out for the type of the model")
        return asked
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.dim() > 1)
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(dtype, "f32")
