"""How a model is brought onto this machine: of which revision, in which type, on which devices, quantised or not.

What every verb that runs a model asks of `from_pretrained` is said here, once; whoever asks is answered in its words.
"""

import atexit
import functools
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from transformers import AttentionInterface, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from ropescale.checkpoint import load_language_model
from ropescale.checkpoints import resolve
from ropescale.checks import require_choice
from ropescale.devices import require_device
from ropescale.errors import InvalidArgumentError, first_line
from ropescale.files import object_of
from ropescale.injection import late
from ropescale.trust import trusted

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
# How weights are held -> the package that does it, and the extra that brings it
QUANTIZATIONS = {
    "bnb-4bit": ("bitsandbytes", "qlora"),
    "bnb-8bit": ("bitsandbytes", "qlora"),
    "torchao-int8": ("torchao", "torchao"),
}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is loaded.

    Raises:
        InvalidArgumentError: a name that there is not, a device or package that is not here, or two that do not go
            together.
    """

    dtype: str = "auto"  # float32 on a CPU, bfloat16 on an accelerator
    device: str = "auto"  # the accelerator if torch sees one, else the CPU
    device_map: str | None = None  # one of `DEVICE_MAPS`, or an object as JSON: module -> device, cpu or disk
    quantization: str | None = None  # one of `QUANTIZATIONS`
    revision: str | None = None  # of a hub id: a branch, a tag or a commit
    attention: str | None = None  # Transformers' attn_implementation; the model's own if not given

    def __post_init__(self) -> None:
        require_choice("dtype:", self.dtype, DTYPES, remedy=f"leave it out for {DTYPES[0]}")
        if self.device_map is None:
            require_device(self.device_name)
        elif self.device != "auto":
            raise InvalidArgumentError(
                f"device: is of a model on one device, got {self.device!r} with device_map {self.device_map!r}; leave "
                f"one of the two out"
            )
        elif self.device_map not in DEVICE_MAPS and object_of(self.device_map) is None:
            raise InvalidArgumentError(
                f"device_map: must be one of {', '.join(DEVICE_MAPS)}, or a JSON object of modules and their devices, "
                f"got {self.device_map!r}; leave it out for one device"
            )
        if self.quantization is not None:
            self._require_package(self.quantization)
        # "/": a kernel of a hub; code of a checkpoint may name ways of its own, which are not known before it runs
        if self.attention is not None and "/" not in self.attention and not trusted():
            require_choice("attention:", self.attention, _attentions(), remedy="leave it out for the model's own")

    @classmethod
    def of(cls, options: Any) -> Self:
        """What somebody's options say of it, by the same names; None stands for the default."""
        said = {item.name: getattr(options, item.name) for item in fields(cls)}
        return cls(**{name: value for name, value in said.items() if value is not None})

    @staticmethod
    def _require_package(quantization: str) -> None:
        require_choice("quantization:", quantization, QUANTIZATIONS, remedy="leave it out for weights as they are")
        package, extra = QUANTIZATIONS[quantization]
        if importlib.util.find_spec(package) is None:
            raise InvalidArgumentError(
                f"quantization: {quantization} needs {package}, got no package of that name; pip install "
                f"'ropescale[{extra}]', or leave it out"
            )

    @property
    def device_name(self) -> str:
        """The device, where "auto" is the accelerator if there is one."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def dtype_name(self) -> str:
        """The dtype of the weights, where "auto" goes by the device."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if torch.device(self.device_name).type == "cpu" else "bfloat16"

    @property
    def stated(self) -> dict[str, str]:
        """What figures depend on besides the dtype: two that differ in it are of different models."""
        names = ("quantization", "revision", "attention")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def keywords(self) -> dict[str, Any]:
        """Those of `from_pretrained`."""
        dtype = getattr(torch, self.dtype_name)
        given: dict[str, Any] = {"dtype": dtype}
        if self.attention is not None:
            given["attn_implementation"] = self.attention
        if self.device_map is not None:
            given |= {"device_map": object_of(self.device_map) or self.device_map, "offload_folder": _offloading()}
        if self.quantization is not None:
            given["quantization_config"] = _quantizer(self.quantization, dtype)
            given.setdefault("device_map", {"": self.device_name})  # weights of some kinds are placed but once
        return given

    def path(self, name: str) -> str:
        """Where a checkpoint lies, all of it of one revision.

        Raises:
            InvalidArgumentError: a revision of what is not on a hub.
            CheckpointError: it cannot be had.
        """
        return resolve(name, revision=self.revision)

    def model(self, name: str) -> PreTrainedModel:
        """A causal language model, where and as it is asked for.

        Raises:
            InvalidArgumentError: a way of computing attention that the model or this machine does not have.
            CheckpointError: no checkpoint there; whatever else `ropescale.load` raises.
        """
        try:
            model = load_language_model(self.path(name), **self.keywords)
        except ImportError as error:
            if self.attention is None:
                raise
            raise InvalidArgumentError(
                f"attention: must be a way of computing attention that this model and this machine have, got "
                f"{self.attention!r} ({first_line(error)}); leave it out for the model's own"
            ) from error
        if self.revision is not None:
            model.name_or_path = name  # what an adapter says of its base, in the place of a folder of this machine
        return model if self.device_map or self.quantization else model.to(self.device_name)


def _attentions() -> list[str]:
    """The ways of computing attention that Transformers has a name for, without those of its server (`paged|...`)."""
    registered = {name for name in AttentionInterface().valid_keys() if "|" not in name}
    return sorted({"eager", *registered} - {late.NAME})


def _quantizer(name: str, dtype: torch.dtype) -> Any:
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


@functools.cache
def _offloading() -> str:
    """A folder for weights that lie on the disk, as long as this process lives."""
    folder = tempfile.mkdtemp(prefix="ropescale-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
