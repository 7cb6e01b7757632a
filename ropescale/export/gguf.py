"""GGUF, the format of llama.cpp and what is built on it: weights, tokenizer and rotation in one file.

A rotation is told as llama.cpp reads it: natively as another theta, as `linear`, or as `yarn` with its default ramp;
otherwise as one divisor per pair in the tensor rope_freqs.weight, and rope.scaling.attn_factor.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig

from ropescale.console import Console
from ropescale.errors import CheckpointError, ExportError, InvalidArgumentError, shortened
from ropescale.export.gguf_header import require_sound
from ropescale.export.gguf_tokenizer import add_tokenizer
from ropescale.export.rotation import Canonical, Rotation, is_base
from ropescale.families.parts import parts_of
from ropescale.families.today import head_dim_of
from ropescale.version import __version__

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
ROPE_FREQS = "rope_freqs.weight"
# Keys of the file that are ropescale's own
RECORD_KEY, SOURCE_KEY, APPROXIMATION_KEY = "ropescale.record", "ropescale.source", "ropescale.approximation"
ORIGIN_KEY = "ropescale.origin"  # JSON, as in `origin.py`


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp holds a family; every entry was run in llama.cpp against Transformers."""

    arch: gguf.MODEL_ARCH
    paired_rows: bool = False  # the two rows of a rotated pair stand next to each other in q and k
    divisors: bool = True  # reads rope_freqs.weight
    facts: Callable[[gguf.GGUFWriter, Any], None] | None = None  # metadata of its own


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _smollm3(writer: gguf.GGUFWriter, config: Any) -> None:
    every_fourth = [int(bool((layer + 1) % 4)) for layer in range(config.num_hidden_layers)]
    if list(config.no_rope_layers) != every_fourth:
        raise ExportError(
            f"smollm3: llama.cpp leaves every fourth layer without rotation, got no_rope_layers="
            f"{config.no_rope_layers}; export to transformers or vllm"
        )


ARCHITECTURES = {
    "granite": Architecture(arch=gguf.MODEL_ARCH.GRANITE, paired_rows=True, facts=_granite),
    "llama": Architecture(arch=gguf.MODEL_ARCH.LLAMA, paired_rows=True),
    "mistral": Architecture(arch=gguf.MODEL_ARCH.LLAMA, paired_rows=True),
    "olmo2": Architecture(arch=gguf.MODEL_ARCH.OLMO2, divisors=False),
    "qwen2": Architecture(arch=gguf.MODEL_ARCH.QWEN2, divisors=False),
    "qwen3": Architecture(arch=gguf.MODEL_ARCH.QWEN3, divisors=False),
    "smollm3": Architecture(arch=gguf.MODEL_ARCH.SMOLLM3, paired_rows=True, divisors=False, facts=_smollm3),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """A rotation in the words of llama.cpp."""

    form: str  # in words
    theta: float
    type: gguf.RopeScalingType | None = None
    factor: float | None = None
    original_length: int | None = None
    attn_factor: float | None = None  # multiplies cos and sin
    divisors: Tensor | None = None  # [pairs] float32


def scaling_of(rotation: Rotation, *, divisors: bool, name: str) -> Scaling:
    """How a rotation is told to llama.cpp.

    Raises:
        ExportError: not natively, and this architecture takes no divisors.
    """
    theta, spectrum, rope = rotation.theta, rotation.spectrum, rotation.parameters
    if is_base(rotation):
        return Scaling(form="rope.freq_base alone", theta=theta)
    if rotation.rope_type == "linear":
        return Scaling(
            form="its native type linear", theta=theta, type=gguf.RopeScalingType.LINEAR, factor=float(rope["factor"])
        )
    if rotation.rope_type == "yarn" and _default_ramp(rope):
        factor = float(rope["factor"])
        theirs = 1 + 0.1 * float(np.log(factor))  # what llama.cpp multiplies by itself
        attn_factor = spectrum.attention_factor / theirs
        return Scaling(
            form="its native type yarn",
            theta=theta,
            type=gguf.RopeScalingType.YARN,
            factor=factor,
            original_length=int(rope["original_max_position_embeddings"]),
            attn_factor=None if abs(attn_factor - 1) < 1e-7 else attn_factor,
        )
    if not divisors:
        raise ExportError(
            f"{name}: llama.cpp reads no divisors for each pair for this architecture, got {rotation.rope_type!r}; "
            f"nearest that it holds exactly: yarn with its default ramp, linear, or ntk"
        )
    if not bool((rotation.spectrum.inv_freq > 0).any()):
        form = "no rotation"
    else:
        form = "one divisor per pair (rope_freqs.weight)"
    return Scaling(
        form=form,
        theta=theta,
        attn_factor=None if spectrum.attention_factor == 1 else spectrum.attention_factor,
        divisors=rotation.divisors,
    )


def _default_ramp(rope: dict[str, Any]) -> bool:
    """Whether this is the ramp that llama.cpp has: it ignores the keys for another one (measured)."""
    return (rope.get("beta_fast") or 32) == 32 and (rope.get("beta_slow") or 1) == 1 and rope.get("truncate", True)


def add_scaling(writer: gguf.GGUFWriter, scaling: Scaling, length: int) -> None:
    """Writes the metadata of a rotation."""
    writer.add_context_length(length)
    writer.add_rope_freq_base(scaling.theta)
    if scaling.type is not None:
        writer.add_rope_scaling_type(scaling.type)
    if scaling.factor is not None:
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.original_length is not None:
        writer.add_rope_scaling_orig_ctx_len(scaling.original_length)
    if scaling.attn_factor is not None:
        writer.add_rope_scaling_attn_factors(scaling.attn_factor)


def added_tensors(scaling: Scaling) -> list[tuple[str, Tensor]]:
    """The tensors of a rotation."""
    return [] if scaling.divisors is None else [(ROPE_FREQS, scaling.divisors)]


def add_label(writer: gguf.GGUFWriter, stated: Canonical, source: str) -> None:
    """Writes what ropescale needs to check the file, and what is not exact about it."""
    if stated.record is not None:
        writer.add_string(RECORD_KEY, json.dumps(stated.record.to_dict()))
    writer.add_string(SOURCE_KEY, source)
    writer.add_string("ropescale.version", __version__)
    if stated.approximation:
        writer.add_string(APPROXIMATION_KEY, stated.approximation)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """How llama.cpp holds this family.

    Raises:
        ExportError: not a family that is written to GGUF, or a config of one that llama.cpp does not know.
    """
    if config.model_type not in ARCHITECTURES:
        raise ExportError(
            f"model type {config.model_type!r}: not a family that is written to GGUF, got "
            f"{type(config).__name__}; written are {', '.join(sorted(ARCHITECTURES))}: use llama.cpp's own converter "
            f"and then patch_gguf"
        )
    if parts_of(config)[0].label:
        raise ExportError(
            f"{config.model_type}: one rotation for all layers is what GGUF states, got one for each layer type; "
            f"export to transformers or vllm"
        )
    return ARCHITECTURES[config.model_type]


def write(
    path: Path,
    config: PreTrainedConfig,
    model: nn.Module,
    tokenizer: Any,
    stated: Canonical,
    source: str,
    outtype: str,
    origin: str,
) -> Scaling:
    """Writes a model as one GGUF file at `path`, which must be a new file; returns how the rotation was told.

    Raises:
        ExportError: a family or a rotation that llama.cpp does not hold.
    """
    architecture = architecture_of(config)
    scaling = scaling_of(stated.main, divisors=architecture.divisors, name=config.model_type)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture.arch])
    _add_facts(writer, config, stated)
    if architecture.facts is not None:
        architecture.facts(writer, config)
    writer.add_file_type(FILE_TYPES[outtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_scaling(writer, scaling, stated.main.target_length)
    add_label(writer, stated, source)
    writer.add_string(ORIGIN_KEY, origin)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    tensors = [*added_tensors(scaling), *_tensors(model, config, architecture)]
    for name, tensor in tensors:
        kind = kind_of(tensor.shape, outtype)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor.numel() // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # one at a time: beside the model only one encoded tensor is in memory
    for _, tensor in track(tensors, description="gguf", console=Console(stderr=True), transient=True):
        writer.write_tensor_data(encoded(tensor, outtype))
    writer.close()
    return scaling


def _add_facts(writer: gguf.GGUFWriter, config: Any, stated: Canonical) -> None:
    head_dim = head_dim_of(config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(stated.main.rotary_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: nn.Module, config: Any, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name in GGUF, in the layout of llama.cpp."""
    names = gguf.get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    state = model.state_dict()
    if getattr(config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    for key, tensor in state.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(
                f"{config.model_type}: parameters must be those of the family as published, got {key!r}; merge or "
                f"remove what was added to the model"
            )
        if architecture.paired_rows and ".q_proj." in key:
            tensor = paired(tensor, config.num_attention_heads)
        elif architecture.paired_rows and ".k_proj." in key:
            tensor = paired(tensor, config.num_key_value_heads)
        yield name, tensor


def paired(rows: Tensor, heads: int) -> Tensor:
    """[heads * head_dim, ...]: query or key rows in the order of llama.cpp, from that of Transformers.

    Transformers stores the first rows of all pairs of a head, then the second ones; llama.cpp the two rows of a pair
    next to each other.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


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
        if asked not in OUTTYPES:
            raise InvalidArgumentError(
                f"outtype: must be one of {', '.join(OUTTYPES)}, got {asked!r}; leave it out for the type of the model"
            )
        return asked
    found = next(parameter.dtype for parameter in model.parameters() if parameter.dim() > 1)
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(found, "f32")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file says about itself, as far as a check needs it."""

    architecture: str
    vocabulary: int
    length: int  # tokens that it is served for
    texts: list[str]  # of every id
    tokens: list[int]  # ids of ordinary text
    letter: int  # id of an ASCII letter
    precision: str  # a key of OUTTYPES, or the name of another type
    record: str | None  # JSON
    source: str
    approximation: str
    origin: str  # JSON


def opened(path: Path) -> gguf.GGUFReader:
    """The file, mapped.

    Raises:
        CheckpointError: none there, or not a whole GGUF file.
    """
    try:
        require_sound(path)
        return gguf.GGUFReader(path)
    except CheckpointError:
        raise
    except Exception as error:  # the package checks nothing, and runs into whatever a damaged file leads to
        raise CheckpointError(
            f"{path}: must be a whole GGUF file, got one that cannot be read ({type(error).__name__}: {error}); write "
            f"or fetch it again"
        ) from error


@dataclass(frozen=True)
class Kind:
    """What the value of a metadata entry has to be."""

    said: str
    holds: Callable[[Any], bool]


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(one) is kind for one in value)


TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", _are(str))
WHOLE = Kind("a list of whole numbers", _are(int))
COUNT = Kind("a whole number of at least 1", lambda value: type(value) is int and value >= 1)
POSITIVE = Kind("a number above 0", lambda value: type(value) in (int, float) and 0 < value < float("inf"))


def contents(reader: gguf.GGUFReader, path: Path, key: str, kind: Kind, default: Any = None) -> Any:
    """The value of a metadata entry; the default where there is none.

    Raises:
        CheckpointError: a value of another kind: the format lets every entry be of every type.
    """
    field = reader.get_field(key)
    if field is None:
        return default
    value = _value(field, path)
    if not kind.holds(value):
        raise CheckpointError(
            f"{path}: metadata entry {key!r} must be {kind.said}, got {shortened(value)}; write or fetch it again"
        )
    return value


def _value(field: gguf.ReaderField, path: Path) -> Any:
    """The value of an entry, whichever it is.

    Raises:
        CheckpointError: a text that is none.
    """
    try:
        return field.contents()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: metadata entry {field.name!r} must be text in UTF-8, got the byte "
            f"{error.object[error.start]:#04x}; write or fetch the file again"
        ) from error


def required(reader: gguf.GGUFReader, path: Path, key: str, kind: Kind) -> Any:
    """The value of a metadata entry that has to be there.

    Raises:
        CheckpointError: it is not, or is of another kind.
    """
    value = contents(reader, path, key, kind)
    if value is None:
        raise CheckpointError(f"{path}: metadata must hold {key!r}, got none; take a file with complete metadata")
    return value


def read_facts(path: Path) -> Facts:
    """What a file says about itself.

    Raises:
        CheckpointError: no such file, or not one of a model with a tokenizer.
    """
    reader = opened(path)
    arch = required(reader, path, "general.architecture", TEXT)
    texts = required(reader, path, "tokenizer.ggml.tokens", TEXTS)
    types = contents(reader, path, "tokenizer.ggml.token_type", WHOLE, [int(gguf.TokenType.NORMAL)] * len(texts))
    if len(types) != len(texts):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.token_type must have one entry a token, got {len(types):,} for {len(texts):,}; "
            f"write or fetch it again"
        )
    ordinary = [place for place, kind in enumerate(types) if kind == gguf.TokenType.NORMAL]
    letters = [
        place for place in ordinary if len(texts[place]) == 1 and texts[place].isascii() and texts[place].isalpha()
    ]
    if not letters:
        raise CheckpointError(
            f"{path}: the vocabulary must hold an ASCII letter to be checked, got none; give a file of a text model"
        )
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise CheckpointError(f"{path}: tensors must hold token_embd.weight, got none; write or fetch it again")
    kinds = {kind: name for name, kind in OUTTYPES.items()}
    precision = kinds.get(embedding.tensor_type, embedding.tensor_type.name.lower())
    return Facts(
        architecture=arch,
        vocabulary=len(texts),
        length=required(reader, path, f"{arch}.context_length", COUNT),
        texts=texts,
        tokens=ordinary,
        letter=letters[0],
        precision=precision,
        record=contents(reader, path, RECORD_KEY, TEXT),
        source=contents(reader, path, SOURCE_KEY, TEXT, ""),
        approximation=contents(reader, path, APPROXIMATION_KEY, TEXT, ""),
        origin=contents(reader, path, ORIGIN_KEY, TEXT, "{}"),
    )


def file_config(reader: gguf.GGUFReader, path: Path) -> LlamaConfig:
    """The rotary facts of a file that is as pretrained, in a config that methods can be asked with.

    Raises:
        CheckpointError: incomplete metadata.
        ExportError: an architecture that is not known here, or a file that is scaled already.
    """
    arch = required(reader, path, "general.architecture", TEXT)
    known = sorted({gguf.MODEL_ARCH_NAMES[one.arch] for one in ARCHITECTURES.values()})
    if arch not in known:
        raise ExportError(
            f"{path}: general.architecture must be one that was run with a scaling, got {arch!r}; these were: "
            f"{', '.join(known)}"
        )
    scaled = sorted(
        [key for key in reader.fields if key.startswith(f"{arch}.rope.scaling.")]
        + [tensor.name for tensor in reader.tensors if tensor.name.startswith(("rope_freqs", "rope_factors"))]
    )
    if scaled:
        raise ExportError(
            f"{path}: positions must be as pretrained, got {', '.join(scaled)}; take the file of the unscaled model"
        )
    if (files := contents(reader, path, "split.count", COUNT, 1)) > 1:
        raise ExportError(f"{path}: must be one file, got one of {files}; merge them first")
    heads, width = (
        required(reader, path, f"{arch}.{key}", COUNT) for key in ("attention.head_count", "embedding_length")
    )
    head_dim = contents(reader, path, f"{arch}.attention.key_length", COUNT, max(width // heads, 1))
    return LlamaConfig(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_hidden_layers=required(reader, path, f"{arch}.block_count", COUNT),
        head_dim=head_dim,
        max_position_embeddings=required(reader, path, f"{arch}.context_length", COUNT),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": contents(reader, path, f"{arch}.rope.freq_base", POSITIVE, 10000.0),
            "partial_rotary_factor": contents(reader, path, f"{arch}.rope.dimension_count", COUNT, head_dim)
            / head_dim,
        },
    )


def reads_divisors(name: str) -> bool:
    """Whether an architecture, by llama.cpp's name, reads rope_freqs.weight."""
    return all(one.divisors for one in ARCHITECTURES.values() if gguf.MODEL_ARCH_NAMES[one.arch] == name)


def rewrite(work: Path, reader: gguf.GGUFReader, path: Path, scaling: Scaling, stated: Canonical, origin: str) -> None:
    """Writes the file of `path` again at `work` with a scaling; every tensor's bytes as they are, compared afterwards.

    Raises:
        CheckpointError: what was written is not what was read, or an entry that cannot be read.
    """
    arch = required(reader, path, "general.architecture", TEXT)
    writer = gguf.GGUFWriter(work, arch)
    replaced = (f"{arch}.context_length", f"{arch}.rope.freq_base", "general.architecture")
    for field in reader.fields.values():
        if field.name in replaced or field.name.startswith(("GGUF.", "ropescale.")):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, _value(field, path), kind, sub_type=inner)
    add_scaling(writer, scaling, stated.main.target_length)
    add_label(writer, stated, contents(reader, path, SOURCE_KEY, TEXT, ""))
    writer.add_string(ORIGIN_KEY, origin)
    for name, divisors in added_tensors(scaling):
        writer.add_tensor(name, divisors.numpy())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = {tensor.name: tensor for tensor in opened(work).tensors}
    for tensor in reader.tensors:
        again = written[tensor.name]
        if again.tensor_type != tensor.tensor_type or not np.array_equal(
            again.data.view(np.uint8), tensor.data.view(np.uint8)
        ):
            raise CheckpointError(
                f"{work}: tensors must be byte for byte those that were read, got another {tensor.name}; the disk or "
                f"the package gguf changed them"
            )
