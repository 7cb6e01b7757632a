"""How a training is spread over processes, and which combinations would silently be wrong.

The engines are Transformers' Trainer and accelerate, with DDP, FSDP2 or DeepSpeed below them; `machines/` holds a
configuration of accelerate for each arrangement. This room knows what was launched, and neither models nor rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainingArguments

from ropescale.checks import require_choice
from ropescale.errors import InvalidArgumentError
from ropescale.extension import late_of
from ropescale.geometry import Geometry
from ropescale.methods import Method
from ropescale.methods.late import LateMethod
from ropescale.recipes.schedules import Schedule
from ropescale.temperature import Temperature, with_temperature

ARRANGEMENTS = ("ddp", "fsdp2", "fsdp2_cp", "zero3_sp")


def machine_file(name: str) -> Path:
    """The configuration of accelerate for an arrangement: `ddp`, `fsdp2`, `fsdp2_cp` or `zero3_sp`.

    Raises:
        InvalidArgumentError: there is none of that name.
    """
    require_choice("machines:", name, ARRANGEMENTS, remedy="see docs/distributed.md")
    return Path(__file__).parent / "machines" / f"{name}.yaml"


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Over how many processes, and what each holds of weights and rows."""

    processes: int = 1
    accelerator: bool = True  # whether there is a GPU or its like
    fsdp: bool = False
    zero_stage: int = 0  # of DeepSpeed; 0 without it
    context: int = 1  # processes that share a row by torch's context parallelism
    sequence: int = 1  # the same by DeepSpeed's sequence parallelism
    ulysses: int = 1  # the same by axolotl-ringmaster

    @property
    def shards_of_a_row(self) -> int:
        """Among how many processes every row is cut."""
        return max(self.context, self.sequence, self.ulysses)

    @property
    def shares_weights(self) -> bool:
        """Whether a process holds a part of the weights alone."""
        return self.fsdp or self.zero_stage == 3

    @classmethod
    def launched(
        cls,
        training: TrainingArguments | None = None,
        *,
        ulysses: int = 1,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """What `accelerate launch` or torchrun has put into the environment, and the training arguments say."""
        parallelism: Any = getattr(training, "parallelism_config", None)
        fsdp = environment.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
        deepspeed = environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes")
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")) if deepspeed else 0
        plugin: Any = getattr(training, "hf_deepspeed_config", None)
        if plugin is not None:
            stage = 3 if plugin.is_zero3() else 2 if plugin.is_zero2() else 1

        def size(name: str) -> int:
            given = getattr(parallelism, f"{name}_size", None)
            return int(given or environment.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1"))

        return cls(
            processes=int(environment.get("WORLD_SIZE", "1")),
            accelerator=torch.accelerator.is_available() and not getattr(training, "use_cpu", False),
            fsdp=fsdp or bool(getattr(training, "fsdp", False)),
            zero_stage=stage,
            context=size("cp"),
            sequence=size("sp"),
            ulysses=ulysses,
        )


def refuse_combinations(
    machines: Machines,
    schedule: Schedule,
    *,
    method: Method,
    geometry: Geometry,
    temperature: Temperature | None = None,
    batch_size: int = 1,
    packing: bool = True,
    attention: str | None = None,
) -> None:
    """Refuse what would train something else than what was asked for, without a word from anyone.

    Args:
        machines: what was launched.
        schedule: of the rows.
        method: with its knobs.
        geometry: of the model to be patched.
        temperature: what queries are multiplied by, as for `ropescale.patch`.
        batch_size: rows that one process reads at a time.
        packing: whether a row may hold several documents.
        attention: the `attn_implementation`; None for the model's own.

    Raises:
        InvalidArgumentError: a combination that is silently wrong; the message names the remedy.
    """
    _refuse_machines(machines)
    shards = machines.shards_of_a_row
    flash = attention is not None and "flash" in attention
    if packing and flash and (batch_size > 1 or schedule.name == "pose"):
        got = "schedule pose" if schedule.name == "pose" else f"{batch_size} rows at a time"
        raise InvalidArgumentError(
            f"attention: flash attention is told of documents in a row by positions alone, and only of one row at a "
            f"time, got {attention!r} with packing and {got}: documents would see one another; give "
            f"attention='sdpa', packing=False, or batch_size=1 with a schedule that keeps positions"
        )
    if machines.shares_weights and isinstance(method, LateMethod) and type(method).added is not LateMethod.added:
        raise InvalidArgumentError(
            f"method: what adds parameters to the model needs whole parameters when it is saved, got {method.name!r} "
            f"with {'FSDP' if machines.fsdp else 'ZeRO-3'}, which would save a part of them; train it with DDP"
        )
    if shards == 1:
        return
    if late_of(method, geometry, temperature=temperature) is not None:
        raise InvalidArgumentError(
            f"method: what acts when attention reads needs whole rows, got {method.name!r}"
            f"{with_temperature(temperature)} and rows cut among {shards} processes, which would each take their "
            f"part for the whole; use a method with fixed frequencies, or do not cut rows"
        )
    if schedule.name == "mixed_window":
        raise InvalidArgumentError(
            f"schedule: mixed_window chooses the rotation token by token over whole rows, got rows cut among {shards} "
            f"processes; use full_length"
        )
    if packing and machines.ulysses == 1:
        raise InvalidArgumentError(
            f"packing: rows cut among processes are read without a mask by "
            f"{'context' if machines.context > 1 else 'sequence'} parallelism, so documents in one row would see one "
            f"another, got packing true; give packing=False"
        )
    parts = 2 * shards if machines.context > 1 else shards  # torch gives each process an early and a late part
    if (length := schedule.length) % parts:
        raise InvalidArgumentError(
            f"length: must be a multiple of {parts} where rows are cut among {shards} processes, got {length}; give "
            f"{length - length % parts}"
        )


def _refuse_machines(machines: Machines) -> None:
    """Refuse arrangements that are no arrangements, whatever is trained."""
    if machines.fsdp and not machines.accelerator:
        raise InvalidArgumentError(
            "fsdp: must have a GPU or its like, got none: Transformers would silently train with DDP instead; leave "
            "it out, or train where there is one"
        )
    cut = {
        name: size
        for name, size in (
            ("context parallelism", machines.context),
            ("DeepSpeed's sequence parallelism", machines.sequence),
            ("ulysses", machines.ulysses),
        )
        if size > 1
    }
    if len(cut) > 1:
        raise InvalidArgumentError(
            f"rows: must be cut among processes in one way, got {' and '.join(cut)}; choose one"
        )
    if machines.ulysses > 1 and (machines.fsdp or machines.zero_stage):
        raise InvalidArgumentError(
            f"ulysses: is for DDP, whose mean over processes its loss is made for, got "
            f"{'FSDP' if machines.fsdp else 'DeepSpeed'}; use context or sequence parallelism with that"
        )
    if machines.ulysses > 1 and machines.ulysses != machines.processes:
        raise InvalidArgumentError(
            f"ulysses: must be the number of processes ({machines.processes}), which all share each row, got "
            f"{machines.ulysses}; start so many"
        )
