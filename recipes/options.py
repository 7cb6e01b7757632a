"""What a recipe says, as dataclasses: which model is extended how, and what of it is trained.

Everything that can be wrong with it without seeing the model is found here, before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ropescale.checkpoints import resolve
from ropescale.checks import require_at_least, require_choice
from ropescale.errors import InvalidArgumentError
from ropescale.files import object_of
from ropescale.methods import get_method
from ropescale.methods.late import LateMethod, LengthDependent, WithoutRotation
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.schedules import CONTENTS, SCHEDULES
from ropescale.recipes.training_options import EVALUATIONS, INDIFFERENT, REFUSED, TrainingOptions
from ropescale.request import Request, require_knobs

TUNINGS = ("full", "lora", "lora_plus", "qlora")
# Knobs of losses, and which losses each belongs to
KNOBS = {
    "loss_alpha": ("exact",),
    "loss_gamma": ("exact",),
    "loss_from": ("exact",),
    "loss_short": ("longce", "longred"),
    "loss_step": ("longce",),
    "loss_cap": ("longce",),
    "loss_restored": ("longred",),
    "loss_skipped": ("longred",),
}
LOSSES = ("exact", "longce", "longred", "plain")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(kw_only=True)
class RecipeOptions:
    """Which model is extended how, what of it is trained, and on rows of which kind.

    Raises:
        InvalidArgumentError: a value that breaks its rule, or two that contradict one another.
        UnknownMethodError: a method that is not in the registry.
    """

    _argument_group_name = "model, method and schedule"

    model: str = field(metadata={"help": "tiny (embedded), smollm2, a path or a hub id"})
    method: str = field(
        default="yarn", metadata={"help": "registry name; see `ropescale methods`", "aliases": ["--methods"]}
    )
    factor: float | None = field(
        default=None, metadata={"help": "target length / original length", "aliases": ["--factors"]}
    )
    target_length: int | None = field(default=None, metadata={"help": "tokens wanted, instead of a factor"})
    original_length: int | None = field(default=None, metadata={"help": "tokens (default: read from the config)"})
    knobs: str = field(default="{}", metadata={"help": """of the method, as JSON: '{"beta_fast": 16}', or a file"""})
    log_n: bool = field(default=False, metadata={"help": "multiply queries by log-n, with any method"})
    temperature: str | None = field(
        default=None,
        metadata={"help": "multiply queries by log_n, llama4, yarn, scalable or drope, or as in log_n:0.8"},
    )
    existing: str = field(default="error", metadata={"help": "for scaled checkpoints: error, replace or compose"})
    layers: str = field(
        default="global", metadata={"help": "global, full or all, where layers have rotations of their own"}
    )

    tuning: Literal["full", "lora", "lora_plus", "qlora"] = field(
        default="lora",
        metadata={
            "help": "what is trained: lora, lora_plus (norms and embeddings too), qlora (4-bit base) or full "
            "(everything)"
        },
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "train on from this adapter: its weights, layers and ranks, its scaling if it has one"},
    )
    rank: int = field(default=8, metadata={"help": "of LoRA"})
    alpha: int = field(default=16, metadata={"help": "of LoRA"})
    lora_dropout: float = field(default=0.0, metadata={"help": "of LoRA"})
    target_modules: list[str] = field(
        default_factory=list, metadata={"help": "names of LoRA's layers (default: the linear layers of attention)"}
    )

    schedule: Literal["full_length", "mixed_window", "pose", "recalibrate"] = field(
        default="full_length",
        metadata={
            "help": "rows of the target length (full_length, mixed_window) or of the original length (pose, "
            "recalibrate)"
        },
    )
    length: int | None = field(default=None, metadata={"help": "tokens of a row (default: the schedule's)"})
    chunks: int = field(default=2, metadata={"help": "of pose: pieces whose positions are moved apart"})
    content: Literal["contiguous", "skip"] = field(
        default="skip", metadata={"help": "of pose: whether the text between chunks is skipped as well"}
    )
    document_mask: bool = field(
        default=True,
        metadata={
            "help": "documents of a row do not see one another; false: a row is read as one text (arXiv:2504.06214)"
        },
    )
    fit_logit_scale: bool = field(
        default=False,
        metadata={"help": "of nope: fit the logit scale at the target length after training (DroPE)"},
    )

    loss: Literal["exact", "longce", "longred", "plain"] = field(
        default="plain",
        metadata={
            "help": "plain: every token counts the same; exact: tokens with a long context count more, the rarer the "
            "more (arXiv:2605.10544); longce: tokens that long context helps count more, for one more pass "
            "(arXiv:2410.23771); longred: short texts are read as by the model before the patch, for three more "
            "passes (arXiv:2502.07365)"
        },
    )
    loss_alpha: float = field(default=0.15, metadata={"help": "of exact: weight that is added to a long token"})
    loss_gamma: float = field(default=0.5, metadata={"help": "of exact: how much rarity counts, 0 for not at all"})
    loss_from: int | None = field(
        default=None, metadata={"help": "of exact: tokens of context from which it is long (default: a quarter row)"}
    )
    loss_short: int | None = field(
        default=None,
        metadata={"help": "of longce and longred: tokens of short context (default: the original length)"},
    )
    loss_step: int | None = field(
        default=None, metadata={"help": "of longce: tokens between short windows (default: a quarter of loss_short)"}
    )
    loss_cap: float = field(default=5.0, metadata={"help": "of longce: the largest weight"})
    loss_restored: float = field(default=5.0, metadata={"help": "of longred: weight of six layers at short positions"})
    loss_skipped: float = field(default=10.0, metadata={"help": "of longred: weight of the last at skipped positions"})

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "of the weights; auto: float32 on a CPU, else bfloat16"}
    )
    attention: str | None = field(
        default=None,
        metadata={"help": "Transformers' attn_implementation (default: the model's own)", "aliases": ["--attn"]},
    )

    device_map: str | None = field(
        default=None,
        metadata={"help": "layers over the devices of one process: auto, balanced ..., or a JSON object"},
    )
    quantization: str | None = field(
        default=None, metadata={"help": "of qlora's base: bnb-4bit (default), bnb-8bit or torchao-int8"}
    )
    revision: str | None = field(default=None, metadata={"help": "of a hub id: a branch, a tag or a commit"})

    ulysses: int = field(
        default=1, metadata={"help": "processes that share every row (axolotl-ringmaster); all, or 1 for none"}
    )

    eval_lengths: list[int] = field(
        default_factory=list, metadata={"help": "tokens (default: the original and the target length)"}
    )
    eval_texts: str = field(
        default="held_out",
        metadata={"help": "held_out (of the data), or what `ropescale eval --texts` takes: sample, speeches, a path"},
    )
    eval_windows: int = field(default=8, metadata={"help": "texts of the longest length for perplexity, at most"})
    eval_passkeys: int = field(default=10, metadata={"help": "passkeys per length and depth, 0 for none"})
    stop_passkey: float | None = field(
        default=None, metadata={"help": "stop when so large a share of passkeys is answered at every length"}
    )
    stop_perplexity: float | None = field(
        default=None, metadata={"help": "stop when perplexity at the longest length is this or less"}
    )

    def __post_init__(self) -> None:
        for name, choices in (
            ("tuning", TUNINGS),
            ("schedule", SCHEDULES),
            ("content", CONTENTS),
            ("loss", LOSSES),
            ("dtype", DTYPES),
        ):
            default = next(item.default for item in dataclasses.fields(self) if item.name == name)
            require_choice(f"{name}:", getattr(self, name), choices, remedy=f"leave it out for {default!r}")
        for name, least in (
            ("rank", 1),
            ("alpha", 1),
            ("chunks", 2),
            ("eval_windows", 1),
            ("eval_passkeys", 0),
            ("length", 2),
            ("ulysses", 1),
            ("loss_from", 1),
            ("loss_short", 2),
            ("loss_step", 1),
        ):
            require_at_least(f"{name}:", getattr(self, name), least)
        if not 0 <= self.lora_dropout < 1:
            raise InvalidArgumentError(
                f"lora_dropout: must be a share from 0 to below 1, got {self.lora_dropout!r}; leave it out for 0"
            )
        if any(length < 16 for length in self.eval_lengths):
            raise InvalidArgumentError(
                f"eval_lengths: must be at least 16 tokens each, got {self.eval_lengths}; correct them"
            )
        if self.stop_passkey is not None and not 0 < self.stop_passkey <= 1:
            raise InvalidArgumentError(
                f"stop_passkey: must be a share above 0 and at most 1, got {self.stop_passkey!r}; divide a "
                f"percentage by 100"
            )
        if self.stop_passkey is not None and not self.eval_passkeys:
            raise InvalidArgumentError(
                "stop_passkey: needs passkeys, got eval_passkeys 0; ask for some, or leave stop_passkey out"
            )
        if self.stop_perplexity is not None and not 1 < self.stop_perplexity < math.inf:
            raise InvalidArgumentError(
                f"stop_perplexity: must be above 1, got {self.stop_perplexity!r}; leave it out to train all steps"
            )
        self._require_method()
        self._require_one_story()
        self._require_loss()

    @property
    def method_knobs(self) -> dict[str, Any]:
        """The knobs of the method.

        Raises:
            InvalidArgumentError: neither a JSON object nor a file that holds one.
        """
        knobs = object_of(self.knobs)
        if knobs is None:
            raise InvalidArgumentError(
                f"knobs: must be a JSON object, or a file that holds one, got {self.knobs!r}; write it as in "
                f'{{"beta_fast": 16}}'
            )
        return knobs

    @property
    def path(self) -> str:
        """Where the model lies, all of it of one revision.

        Raises:
            InvalidArgumentError: a revision of what is not on a hub.
            CheckpointError: it cannot be had.
        """
        return resolve(self.model, revision=self.revision)

    @property
    def dtype_name(self) -> str:
        """The dtype of the weights, where "auto" goes by the machine."""
        import torch

        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if torch.cuda.is_available() else "float32"

    @property
    def request(self) -> Request:
        """What the model is patched with."""
        return Request.of(vars(self), knobs=self.method_knobs)

    def _require_method(self) -> None:
        """Refuse a method with knobs or without a factor that it needs."""
        knobs = self.method_knobs
        require_knobs(self.method, knobs)
        kind = get_method(self.method)
        if self.factor is None and self.target_length is None and not issubclass(kind, LateMethod):
            raise InvalidArgumentError(
                f"factor: is required by {self.method}, got neither factor nor target_length; give factor=4 for "
                f"four times the original length"
            )
        if self.factor is not None:
            kind(factor=self.factor, **knobs)

    def _require_one_story(self) -> None:
        """Refuse settings that contradict one another."""
        kind = get_method(self.method)
        if self.schedule == "mixed_window" and issubclass(kind, LateMethod) and not issubclass(kind, LengthDependent):
            raise InvalidArgumentError(
                f"schedule: mixed_window needs a method that rescales frequencies, so that documents within the "
                f"original length can keep the rotation of pretraining, got {self.method!r}; use full_length"
            )
        if self.schedule in ("full_length", "mixed_window", "pose") and not (self.factor or self.target_length):
            raise InvalidArgumentError(
                f"schedule: {self.schedule} needs a target, got neither factor nor target_length; give one, or use "
                f"recalibrate"
            )
        if self.schedule == "recalibrate" and not issubclass(kind, WithoutRotation):
            raise InvalidArgumentError(
                f"schedule: recalibrate trains at the original length what replaces rotation, got {self.method!r} "
                f"which rescales it; use pose or full_length"
            )
        if self.fit_logit_scale and (
            self.method != "nope" or not (self.factor or self.target_length) or "logit_scale" in self.method_knobs
        ):
            raise InvalidArgumentError(
                f"fit_logit_scale: needs method nope with a factor and no logit_scale of its own, got "
                f"{self.method!r} with factor {self.factor!r} and knobs {self.knobs}; correct one"
            )
        if self.tuning == "full" or self.adapter is not None:
            given = [
                item.name
                for item in dataclasses.fields(self)
                if item.name in ("rank", "alpha", "lora_dropout") and getattr(self, item.name) != item.default
            ] + (["target_modules"] if self.target_modules else [])
            if given:
                other = "tuning 'full'" if self.adapter is None else "an adapter that has its own"
                raise InvalidArgumentError(
                    f"{given[0]}: belongs to LoRA, got it with {other}; leave it out, or use tuning lora"
                )
        if self.adapter is not None and self.tuning not in ("lora", "qlora"):
            raise InvalidArgumentError(
                f"tuning: must be lora or qlora with an adapter, which says itself what is trained, got "
                f"{self.tuning!r}; use recipe lora or tuning='lora'"
            )
        if self.quantization is not None and self.tuning != "qlora":
            raise InvalidArgumentError(
                f"quantization: belongs to tuning qlora, got {self.quantization!r} with {self.tuning!r}; use tuning "
                f"qlora, or leave it out"
            )
        if self.schedule != "pose" and (self.chunks != 2 or self.content != "skip"):
            raise InvalidArgumentError(
                f"chunks, content: belong to schedule pose, got {self.chunks} and {self.content!r} with "
                f"{self.schedule!r}; leave them out"
            )

    def _require_loss(self) -> None:
        """Refuse numbers of losses that are none, knobs of another loss, and a schedule without long contexts."""
        for name, least in (
            ("loss_alpha", 0),
            ("loss_gamma", 0),
            ("loss_cap", 1),
            ("loss_restored", 0),
            ("loss_skipped", 0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise InvalidArgumentError(
                    f"{name}: must be a number of at least {least}, got {value!r}; leave it out for the published one"
                )
        for name, losses in KNOBS.items():
            default = next(item.default for item in dataclasses.fields(self) if item.name == name)
            if getattr(self, name) != default and self.loss not in losses:
                raise InvalidArgumentError(
                    f"{name}: belongs to loss {' and '.join(losses)}, got {getattr(self, name)!r} with {self.loss!r}; "
                    f"leave it out"
                )
        if not self.document_mask and (self.schedule == "mixed_window" or self.loss != "plain"):
            other = "schedule 'mixed_window'" if self.schedule == "mixed_window" else f"loss {self.loss!r}"
            raise InvalidArgumentError(
                f"document_mask: must be true for what goes by the length of each document, got false with {other}; "
                f"leave one of the two out"
            )
        if self.loss == "longred" and (self.tuning not in ("lora", "qlora") or self.schedule != "full_length"):
            raise InvalidArgumentError(
                f"loss: longred needs tuning lora or qlora, whose base is the model to restore, and schedule "
                f"full_length, got {self.tuning!r} and {self.schedule!r}; use these, or loss plain"
            )
        if self.loss != "plain" and self.schedule == "pose":
            raise InvalidArgumentError(
                f"loss: {self.loss} weighs tokens by context that they see, which rows of pose do not have, got "
                f"schedule 'pose'; use full_length, or loss plain"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe with everything decided.

    Raises:
        InvalidArgumentError: a target that is never looked at, a mask that there is nothing for, or smoothed labels
            with a loss that weighs tokens.
    """

    name: str
    options: RecipeOptions
    data: DataOptions
    training: TrainingOptions

    def __post_init__(self) -> None:
        strategy = self.training.eval_strategy
        evaluated = getattr(strategy, "value", strategy) != "no"
        for name in ("stop_passkey", "stop_perplexity"):
            if getattr(self.options, name) is not None and not evaluated:
                raise InvalidArgumentError(
                    f"{name}: is looked at when the run is measured meanwhile, got eval_strategy 'no'; leave one of "
                    f"the two out"
                )

        if not (self.options.document_mask or self.data.packing):
            raise InvalidArgumentError(
                "document_mask: acts on rows of several documents, got false with packing false; leave one of the two "
                "out"
            )
        if self.options.loss != "plain" and self.training.label_smoothing_factor:
            raise InvalidArgumentError(
                f"label_smoothing_factor: is of Transformers' own loss, got it with loss {self.options.loss!r}; leave "
                f"one of the two out"
            )

    @property
    def separates(self) -> bool:
        """Whether rows may hold several documents that do not see one another."""
        return self.data.packing and self.options.document_mask

    @property
    def output(self) -> Path:
        """Where everything is written."""
        folder = self.training.output_dir
        assert folder is not None  # read_recipe sees to it
        return Path(folder)

    def settings(self) -> dict[str, Any]:
        """What the trained weights depend on, as JSON can hold it: a run is only continued with the same.

        Documents are not among them: they are known by their content, not by the names of their files.
        """
        mine = {"recipe": self.name, **dataclasses.asdict(self.options), **dataclasses.asdict(self.data)}
        trained = {
            item.name: getattr(self.training, item.name)
            for item in dataclasses.fields(self.training)
            if item.init and item.name not in {*REFUSED, *INDIFFERENT}
        }
        if self.options.stop_passkey is None and self.options.stop_perplexity is None:
            trained |= dict.fromkeys(EVALUATIONS)  # which decide nothing then
        processes = {"processes": self.training.world_size}
        plain: dict[str, Any] = json.loads(
            json.dumps({**mine, **trained, **processes, "cache_dir": None}, default=str)
        )
        return plain
