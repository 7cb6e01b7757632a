"""What is wrong with the positions of a checkpoint, an adapter or a loaded model, and the remedy.

Files are read as they are written, because reading a config through Transformers fills in and renames what is missing.
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ropescale.adapter_files import CONFIG_FILE
from ropescale.checkpoints import resolve
from ropescale.contents import CONFIG, VOCABULARIES, lacks_tokenizer, read_config
from ropescale.doctor.adapter import of_adapter
from ropescale.doctor.config import stated, text_in
from ropescale.doctor.effect import blocked, of_config, of_record, stating_types, unread_beside
from ropescale.doctor.files import of_limits, of_weights
from ropescale.doctor.finding import Finding
from ropescale.doctor.lengths import whole
from ropescale.doctor.live import of_rotary, of_softmax
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError, shortened
from ropescale.families.parts import text_of
from ropescale.families.support import require_family
from ropescale.files import read_json
from ropescale.injection.patch import patch_of
from ropescale.shards import SAFE, TORCH
from ropescale.wrappers import bare


def diagnose(path_or_model: str | Path | nn.Module) -> list[Finding]:
    """What is wrong with the positions of a saved model, an adapter's folder or a loaded model; empty if nothing is.

    Nothing is changed and no weight is loaded. A checkpoint scaled by whatever method is not a fault in itself: only
    what contradicts itself, is ignored, lost or too short.

    Example:
        >>> import ropescale
        >>> ropescale.diagnose("tiny")
        []

    Raises:
        CheckpointError: no checkpoint there, or files that cannot be read at all.
        UnsupportedModelError: not a family of this version.
        InvalidArgumentError: neither a path nor a model.
    """
    if isinstance(path_or_model, nn.Module):
        return _of_model(bare(path_or_model))
    if not isinstance(path_or_model, (str, Path)) or "\0" in str(path_or_model):
        raise InvalidArgumentError(
            f"diagnose: path_or_model must be a path, a hub id, a short name or a loaded model, got "
            f"{shortened(path_or_model)}; give one of them"
        )
    folder = Path(resolve(str(path_or_model)))
    if not folder.is_dir():
        raise CheckpointError(
            f"{path_or_model}: must be the folder of a checkpoint or of an adapter, got no folder; check the path"
        )
    if (folder / CONFIG_FILE).is_file():
        return list(of_adapter(folder))
    return _of_checkpoint(folder)


def unserved(path: str | Path) -> list[Finding]:
    """What a checkpoint lacks besides positions to be evaluated, trained or served: a tokenizer.

    Nothing is said of an adapter, whose base has one, nor of a config without weights, which nobody serves.
    """
    folder = Path(resolve(str(path)))
    weights = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in (SAFE, TORCH))
    if (folder / CONFIG_FILE).is_file() or not lacks_tokenizer(folder) or not any(weights):
        return []
    return [
        Finding(
            check="no-tokenizer",
            where=folder.name,
            rule=f"a tokenizer must lie beside the weights to evaluate, train or serve them, got none of "
            f"{', '.join(VOCABULARIES)}",
            remedy="put the tokenizer files of the model there (tokenizer.save_pretrained)",
        )
    ]


def _of_checkpoint(folder: Path) -> list[Finding]:
    raw = read_json(folder / CONFIG)
    if not raw:
        raise CheckpointError(f"{folder}: must hold a {CONFIG}, got none or an empty one; check the path")
    text = text_in(raw)
    refusal: RopescaleError | None = None
    config: PreTrainedConfig | None = None
    try:
        config = text_of(read_config(str(folder), trust_remote_code=False))
        require_family(config)
    except RopescaleError as error:
        refusal = error
    findings = list(stated(text, config))
    if config is not None and refusal is None:
        findings += of_config(config, text, findings, CONFIG)
        findings += of_record(config, CONFIG) if stating_types(config) else ()
    elif findings or refusal is None:
        findings += unread_beside(text)
    else:
        raise refusal
    if maximum := whole(text.get("max_position_embeddings")):
        findings += of_limits(folder, text, maximum)
    findings += of_weights(folder, None if refusal or blocked(findings) else config)
    return findings


def _of_model(model: nn.Module) -> list[Finding]:
    config: Any = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise InvalidArgumentError(
            f"diagnose: path_or_model must be a Transformers model with a config, got {type(model).__name__}; load it "
            f"first, for instance with ropescale.load(path)"
        )
    config = text_of(config)
    require_family(config)
    text = config.to_dict()
    findings = list(stated(text, config))
    findings += of_config(config, text, findings, "config")
    if patch_of(model) is None and stating_types(config):
        findings += of_record(config, "config")
    comparable = not blocked(findings)
    findings += of_rotary(model, config, comparable=comparable)
    if comparable:
        findings += of_softmax(model, config)
    return findings
