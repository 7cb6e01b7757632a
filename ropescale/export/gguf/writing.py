"""A model written as one file, and a file written again with a scaling."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from rich.progress import track
from torch import Tensor, nn

from ropescale.console import Console
from ropescale.errors import CheckpointError, ExportError
from ropescale.export.canonical import Canonical
from ropescale.export.gguf.architectures import Architecture, architecture_of
from ropescale.export.gguf.reading import (
    APPROXIMATION_KEY,
    ORIGIN_KEY,
    RECORD_KEY,
    SOURCE_KEY,
    TEXT,
    contents,
    reader_of,
    required,
    value_of,
)
from ropescale.export.gguf.scaling import Scaling, add_scaling, added_tensors, scaling_of
from ropescale.export.gguf.tokenizer import add_tokenizer
from ropescale.export.gguf.weights import FILE_TYPES, encoded, kind_of
from ropescale.export.origin import public_name
from ropescale.export.source import Source
from ropescale.families.today import head_dim_of
from ropescale.version import __version__


def add_label(writer: gguf.GGUFWriter, canonical: Canonical, source: str, origin: str) -> None:
    """Writes what ropescale needs to check the file, and what is not exact about it."""
    if canonical.record is not None:
        writer.add_string(RECORD_KEY, json.dumps(canonical.record.to_dict()))
    writer.add_string(SOURCE_KEY, source)
    writer.add_string("ropescale.version", __version__)
    if canonical.approximation:
        writer.add_string(APPROXIMATION_KEY, canonical.approximation)
    writer.add_string(ORIGIN_KEY, origin)


def write(
    path: Path, source: Source, model: nn.Module, tokenizer: Any, canonical: Canonical, outtype: str, origin: str
) -> Scaling:
    """Writes a model as one GGUF file at `path`, which must be a new file; returns how the rotation was told.

    Raises:
        ExportError: a family or a rotation that llama.cpp does not hold.
    """
    config: Any = source.config
    architecture = architecture_of(config)
    scaling = scaling_of(canonical.main, divisors=architecture.divisors, name=config.model_type)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture.arch])
    _add_facts(writer, config, canonical)
    if architecture.facts is not None:
        architecture.facts(writer, config)
    writer.add_file_type(FILE_TYPES[outtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_scaling(writer, scaling, canonical.main.target_length)
    add_label(writer, canonical, public_name(source.name), origin)
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


def _add_facts(writer: gguf.GGUFWriter, config: Any, canonical: Canonical) -> None:
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
    writer.add_rope_dimension_count(canonical.main.rotary_dim)
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


def rewrite(
    work: Path, reader: gguf.GGUFReader, path: Path, scaling: Scaling, canonical: Canonical, origin: str
) -> None:
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
        writer.add_key_value(field.name, value_of(field, path), kind, sub_type=inner)
    add_scaling(writer, scaling, canonical.main.target_length)
    add_label(writer, canonical, contents(reader, path, SOURCE_KEY, TEXT, ""), origin)
    for name, divisors in added_tensors(scaling):
        writer.add_tensor(name, divisors.numpy())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = {tensor.name: tensor for tensor in reader_of(work).tensors}
    for tensor in reader.tensors:
        again = written[tensor.name]
        if again.tensor_type != tensor.tensor_type or not np.array_equal(
            again.data.view(np.uint8), tensor.data.view(np.uint8)
        ):
            raise CheckpointError(
                f"{work}: tensors must be byte for byte those that were read, got another {tensor.name}; the disk or "
                f"the package gguf changed them"
            )
