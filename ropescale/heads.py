"""What a checkpoint is a model for: the class that its config names, and so the head that it is loaded with."""

from typing import Any

import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from ropescale.errors import CheckpointError, UnsupportedModelError, shortened
from ropescale.families.catalogue import LOADED_WHOLE

# How names of classes end, and what loads their kind for a config of any family
KINDS: dict[str, Any] = {
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
BARE = "Model"  # how the names of decoders without a head end


def class_of(config: PreTrainedConfig, *, trusted: bool = False) -> Any:
    """What loads a checkpoint with the head that it was saved with: the class that its config names, or its kind.

    A config that names none is that of a causal language model. Of vision-language models those that Transformers
    lists among causal language models too (Qwen3.5, Llama 4) are loaded as their text decoder.

    Args:
        config: of the checkpoint.
        trusted: a class that the checkpoint's own code defines is taken from there (`trust_remote_code`).

    Raises:
        CheckpointError: a class that Transformers does not have, and of a kind that its name does not tell.
    """
    name = named_class(config)
    listed = type(config) in AutoModelForCausalLM._model_mapping
    if not name:
        return AutoModelForCausalLM
    own_code = getattr(config, "auto_map", None) or {}
    for auto, reference in own_code.items() if trusted else ():
        if str(reference).rpartition(".")[2] == name and hasattr(transformers, auto):
            return getattr(transformers, auto)
    named: Any = getattr(transformers, name, None)
    if not _is_model(named):
        named = None
    if named is not None and isinstance(config, named.config_class or ()):
        alone = listed and named.can_generate() and config.model_type not in LOADED_WHOLE
        return AutoModelForCausalLM if alone else named
    # a class of another family, as fine-tunes of a fork name it, or one that Transformers has never heard of
    for ending, kind in {**KINDS, **({BARE: AutoModel} if named is not None else {})}.items():
        if name.endswith(ending) and type(config) in kind._model_mapping:
            return kind
    remedy = "pass trust_remote_code=True if you trust its code" if own_code else "load it with the code that saved it"
    raise CheckpointError(
        f"config: architectures must name a class that Transformers {transformers.__version__} has for "
        f"{config.model_type!r}, got {shortened(name)}; {remedy}, or name the class that fits the weights "
        f"there"
    )


def named_class(config: PreTrainedConfig) -> str:
    """The name of the class that saved a checkpoint; empty where the config has none.

    Raises:
        CheckpointError: something else than names of classes.
    """
    named = getattr(config, "architectures", None) or [""]
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CheckpointError(
            f"config: architectures must be a list of names of classes, got {shortened(named)}; restore the file "
            f"that belongs to the checkpoint"
        )
    first: str = named[0]
    return first


def require_language_model(config: PreTrainedConfig, what: str, *, trusted: bool = False) -> None:
    """Refuse a checkpoint without a head over the vocabulary, before its weights are loaded.

    Args:
        config: of the checkpoint.
        what: what the caller calls it, for the message.
        trusted: as for `class_of`.

    Raises:
        UnsupportedModelError: a classifier, an embedding model or a bare decoder.
        CheckpointError: whatever `class_of` raises.
    """
    loader = class_of(config, trusted=trusted)
    if loader is AutoModelForCausalLM or (_is_model(loader) and loader.can_generate()):
        return
    raise headless(what, named_class(config))


def headless(what: str, name: str) -> UnsupportedModelError:
    """The error for a class without a head over the vocabulary, where one is needed."""
    return UnsupportedModelError(
        f"{what}: must be a causal language model, which has a head over the vocabulary, got a {name}, which has "
        f"none; give a causal language model, or use this one from Python with ropescale.load"
    )


def _is_model(named: Any) -> bool:
    return isinstance(named, type) and issubclass(named, PreTrainedModel)
