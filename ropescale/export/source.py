"""What is exported: a checkpoint in a folder or on a hub, with or without a method and an adapter, or a live model."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn
from transformers import PreTrainedConfig

from ropescale.checks import as_float
from ropescale.contents import VOCABULARIES, read_config, read_tokenizer
from ropescale.errors import CheckpointError, InvalidArgumentError, shortened
from ropescale.export import companions
from ropescale.export.weights import INDEX, adapted, loaded, local_folder, record_of, text_in
from ropescale.extension import extended, extended_again
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.parts import parts_of, place_of_text, text_of
from ropescale.families.support import require_supported
from ropescale.families.today import rope_type_of, todays_spectrum
from ropescale.files import read_json
from ropescale.merging import merged_into, reads_embedding
from ropescale.patching import record
from ropescale.records import EXPORT_FIELD, RECORD_FIELD, saved_record
from ropescale.request import Request
from ropescale.shards import files_of_index
from ropescale.wrappers import bare

WEIGHTS = "model.safetensors"
AS_IT_IS = "none"  # the method of a model that is exported as it is, on purpose


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to be exported: its config as extended, and where its weights and tokenizer are."""

    name: str  # as the caller gave it
    config: PreTrainedConfig  # as Transformers would save the extended model, what sees images with it
    folder: Path | None  # where its files are; None for a live model
    live: nn.Module | None  # where the weights are not those of the folder
    tokenizer: Any = None  # given with a live model
    beside: Path | None = None  # an adapter's folder, whose tokenizer or chat template comes before the folder's
    adapter: str | Path | None = None  # that is merged into the weights

    @property
    def text(self) -> PreTrainedConfig:
        """The config of its text decoder, which is what rotates."""
        return text_of(self.config)

    @property
    def place(self) -> str:
        """The entry of the config that is the text decoder's; empty where the model is that alone."""
        return place_of_text(self.config)

    @property
    def without_sight(self) -> bool:
        """Whether what sees or hears in the folder stays behind: an adapter is merged into the text decoder alone."""
        return self.folder is not None and not self.place and bool(place_of_text(self.folder_config()))

    def weight_files(self) -> list[Path]:
        """The safetensors files of the folder, each checked to be whole; empty where weights are kept otherwise.

        Raises:
            CheckpointError: a file that is missing or broken.
        """
        if self.folder is None or self.live is not None:
            return []
        if self.indexed:
            files = files_of_index(self.folder / INDEX)
        else:
            files = [self.folder / WEIGHTS] if (self.folder / WEIGHTS).is_file() else []
        for file in files:
            try:
                with safetensors.safe_open(file, framework="pt"):
                    pass
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(
                    f"{file}: must be a whole safetensors file, got one that cannot be read ({error}); fetch it again"
                ) from error
        return files

    @property
    def indexed(self) -> bool:
        """Whether an index says which files hold the weights: Transformers reads it where there is no one file."""
        return self.folder is not None and not (self.folder / WEIGHTS).is_file() and (self.folder / INDEX).is_file()

    def companions(self) -> dict[str, Path]:
        """The files of tokenizer and generation, by their names: the adapter's tokenizer where it has one."""
        return companions.of(self.folder, self.beside)

    def pooling(self) -> dict[str, Path]:
        """The files of an embedding model's pooling, by their places in the folder.

        Raises:
            CheckpointError: a link that leads out of the folder, to nothing, or in a circle.
        """
        return {} if self.folder is None else companions.pooling(self.folder)

    def folder_config(self) -> PreTrainedConfig:
        """The config of the folder, before any patch."""
        config = read_config(str(self.folder))
        text = text_of(config)
        if (done := saved_record(text)) is not None:
            done.restore(text)
        return config

    def model(self) -> nn.Module:
        """The model with its weights, in the type of the checkpoint; rotary buffers are not to be relied on.

        Raises:
            CheckpointError: weights that are missing or broken.
        """
        if self.live is not None:
            return bare(self.live)
        assert self.folder is not None
        return loaded(self.folder)

    def tokenizer_limit(self) -> float:
        """The most tokens that the tokenizer's own settings allow."""
        path = self.companions().get("tokenizer_config.json")
        if path is None:
            return math.inf
        limit = as_float(read_json(path).get("model_max_length"))
        return limit if limit > 0 else math.inf

    def tokens(self) -> Any:
        """The tokenizer.

        Raises:
            CheckpointError: there is none.
        """
        if self.tokenizer is not None:
            return self.tokenizer
        if self.folder is None:
            raise InvalidArgumentError(
                "tokenizer: must be given for a live model that is exported with its tokenizer, got None; "
                "pass tokenizer=AutoTokenizer.from_pretrained(path)"
            )
        if not self.has_tokenizer():
            raise CheckpointError(
                f"{self.folder}: must hold a tokenizer, got none of {', '.join(VOCABULARIES)}; add the tokenizer "
                f"files of the model"
            )
        place = self.folder
        if self.beside is not None and (self.beside / "tokenizer_config.json").is_file():
            place = self.beside
        tokenizer = read_tokenizer(place)
        template = self.companions().get("chat_template.jinja")
        if template is not None:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        return tokenizer

    def has_tokenizer(self) -> bool:
        """Whether there is one: without its files Transformers makes an empty one for some families."""
        if self.tokenizer is not None:
            return True
        files = self.companions()
        return any(name in files or (self.folder is not None and any(self.folder.glob(name))) for name in VOCABULARIES)


def requested(arguments: Mapping[str, Any]) -> Request | None:
    """What a source is to be extended by, from the arguments of `export`; None where it is exported as it stands.

    Raises:
        CheckpointError: no adapter there, or a damaged record.
        InvalidArgumentError: arguments without a method or beside an adapter that says all of them, or ones that break
            their rules.
        UnknownMethodError: no method of that name.
    """
    method, adapter = arguments["method"], arguments["adapter"]
    asked = Request.of(arguments, method=Request.method, knobs={}).asked() | arguments["knobs"]
    given = asked if method is None else {"method": method, **asked}
    trained = None if adapter is None else record_of(adapter)
    if trained is not None and given:
        first = next(iter(given))
        raise InvalidArgumentError(
            f"{first}: must be left out with an adapter that carries how its base was patched "
            f"({trained.method_instance()}, {trained.target_length} tokens), got {shortened(given[first])}; leave out "
            f"{', '.join(given)}, and the export is patched as in training"
        )
    if method is not None and method != AS_IT_IS:
        return Request.of(arguments)
    if asked and method is None:
        raise InvalidArgumentError(
            f"method: must be given with {', '.join(asked)}, got None; name the method, or leave the others out to "
            f"export the checkpoint as it is"
        )
    for name in sorted(asked):
        raise InvalidArgumentError(
            f"{name}: must be left out with method {AS_IT_IS!r}, which leaves the model as it is, got "
            f"{shortened(asked[name])}; name a method, or leave out {', '.join(sorted(asked))}"
        )
    return None


def source_of(
    source: str | Path | nn.Module,
    request: Request | None = None,
    *,
    as_it_is: bool = False,
    adapter: str | Path | None = None,
    tokenizer: Any = None,
) -> Source:
    """The source, extended by the request if there is one, with the adapter merged if one is given.

    An adapter that carries a record is the method: the source is extended as it was when the adapter was trained.
    `as_it_is` lets a source through that is not extended at all.

    Raises:
        CheckpointError: no checkpoint or adapter there.
        InvalidArgumentError: arguments that do not go together.
        UnsupportedModelError: a family that is not patched.
        RopescaleError: whatever `patch` and `load_adapter` raise.
    """
    if isinstance(source, nn.Module):
        live = bare(source)
        if live is not source and hasattr(source, "merge_and_unload"):
            raise InvalidArgumentError(
                f"source: a model with an adapter must be merged to be exported, got {type(source).__name__}; call "
                f"merge_and_unload() first"
            )
        if adapter is not None:
            raise InvalidArgumentError(
                f"adapter: must be left out for a live model, got {str(adapter)!r}; load the adapter and call "
                f"merge_and_unload(), or give the path of the base"
            )
        name, folder, model = "a live model", None, live
        config: Any = copy.deepcopy(live.config)
        text = text_in(config)
        require_supported(text)
        headed: Any = live
        if getattr(config, "tie_word_embeddings", False) and headed.get_output_embeddings() is not None:
            config.tie_word_embeddings = reads_embedding(live)  # a merge may have separated them
        if (done := record(live)) is not None:
            setattr(text, RECORD_FIELD, done.to_dict())
    else:
        name = str(source)
        folder = local_folder(name)
        config = read_config(str(folder))
        text = text_in(config)
        require_supported(text)
        model = None
        _require_one_rotation(text, folder, getattr(config, EXPORT_FIELD, None))
        if adapter is not None:
            trained = record_of(adapter)
            model = merged_into(adapted(folder, adapter), adapter)
            # one of a decoder that was loaded without the vision beside it has lost that
            if trained is not None or model.config.model_type != config.model_type:
                config = copy.deepcopy(model.config)
            text = text_of(config)
            for one, theirs in ((config, model.config), (text, text_of(model.config))):
                for field in ("tie_word_embeddings", "vocab_size"):
                    if hasattr(one, field):
                        setattr(one, field, getattr(theirs, field))
    if request is not None:
        extended(text, request).write(text)
    elif not as_it_is and not lengthened(text):
        raise InvalidArgumentError(
            f"method: must be given for a model whose context is as pretrained, got None; name one with a factor, "
            f"such as 'yarn' with 4, or {AS_IT_IS!r} to export the model as it is"
        )
    beside = None if adapter is None else Path(adapter)
    return Source(
        name=name, config=config, folder=folder, live=model, tokenizer=tokenizer, beside=beside, adapter=adapter
    )


def lengthened(config: PreTrainedConfig) -> bool:
    """Whether a text decoder's config states more than pretraining's rotation: a record, or a scaling of its own."""
    if saved_record(config) is not None:
        return True
    return any(rope_type_of(part.config) not in ("", "default") for part in parts_of(config))


def _require_one_rotation(config: PreTrainedConfig, folder: Path, label: dict[str, Any] | None) -> None:
    """Refuse a text decoder's config whose record says one rotation, and whose other entries say another.

    An export has a `label`: it is in an engine's own words, lengths too.

    Raises:
        CheckpointError: one of the two was edited.
    """
    done = saved_record(config)
    if done is None:
        return
    meant, extension = extended_again(config, done)
    extension.write(meant)
    late = [rope_type_of(parts_of(one)[0].config) == LATE_TYPE for one in (config, meant)]
    if any(late):
        same = all(late)
    else:
        spectra = [[todays_spectrum(part) for part in parts_of(one)] for one in (config, meant)]
        same = len(spectra[0]) == len(spectra[1]) and all(
            torch.allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-18) and abs(ours[1] - theirs[1]) < 1e-5
            for ours, theirs in zip(*spectra, strict=True)
        )
    lengths = label is not None or config.max_position_embeddings == meant.max_position_embeddings
    if (same and lengths) or (label or {}).get("approximation"):
        return
    field = "rope_parameters" if not same else "max_position_embeddings"
    raise CheckpointError(
        f"{folder}: config.{field} must be what the ropescale record gives ({shortened(getattr(meant, field))}), got "
        f"{shortened(getattr(config, field))}; one of the two was edited: remove the record to keep the config as it "
        f"is"
    )
