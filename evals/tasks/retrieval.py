"""What every retrieval task shares: rows of exactly the asked length, and two rules by which a reply is scored.

A task draws a sample from a generator of its own; here it is fitted to its length and made a row of the harness.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals.chat import PLAIN, Frame, chat_frame, joined
from ropescale.evals.tokens import Cuts, Draft, fitted, task_tokenizer, token_counts

FEATURES = datasets.Features(
    {
        "prompt": datasets.Value("string"),
        "gen_prefix": datasets.Value("string"),
        "target": datasets.List(datasets.Value("string")),
        "length": datasets.Value("int64"),  # tokens of prompt, answer prefix and reply together
        "depth": datasets.Value("float64"),  # share of the haystack before the needle that is asked for
        "sample": datasets.Value("int64"),
    }
)
DRAWS = 100  # a sample whose words do not fit at a length near the minimum is drawn anew so often
PROBES = 16  # samples that the minimum of a task is measured on


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a sample is drawn for."""

    tokenizer: PreTrainedTokenizerBase
    length: int  # tokens
    number: int  # of the sample, among those of its length and depth
    depth: float | None = None  # share of the haystack
    short: bool = False  # the task's form for short lengths
    draw: int = 0  # how often the sample was drawn before and did not fit
    frame: Frame = PLAIN  # how prompt and answer prefix become the text that the model reads


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question before it has a length."""

    prompt: Callable[[int, str], str]  # units of haystack, filling -> the text before the answer prefix
    gen_prefix: str  # how the reply begins, given to the model
    target: list[str]  # what the reply has to contain
    filling: Callable[[int], Cuts]  # units -> what fills the rest
    size: Callable[[int], float] | None = None  # units -> tokens, about; None where all units take alike
    least: int = 0  # units
    most: int | None = None  # units
    depth: Callable[[int], float | None] = field(default=lambda units: None)  # units -> depth of the needle asked for

    def text(self, units: int, filling: str, frame: Frame) -> str:
        """What the model reads, in its frame."""
        return frame.write(self.prompt(units, filling), self.gen_prefix)


class PromptSampler(ABC):
    """What makes the rows of a retrieval task: samples, drawn one by one and fitted to a length.

    What a task is called, reads and is reported as is a `Retrieval` of its `task.py`.
    """

    name: str  # short, without the prefix ropescale_
    reply_tokens: int  # max_gen_toks of the task's YAML
    lengths: Sequence[int] = (1024,)  # tokens, if not asked for otherwise
    depths: Sequence[float | None] = (None,)  # shares of the haystack, if not asked for otherwise; None is any
    samples: int = 10  # of each length and depth, if not asked for otherwise
    full_from: int = 0  # tokens; below, or where its full form does not fit, a task that has a short form takes it

    @abstractmethod
    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws one sample; everything random comes from `rng`."""

    def minimum(self, tokenizer: PreTrainedTokenizerBase, frame: Frame = PLAIN) -> int:
        """The fewest tokens that the task can be asked for with the tokenizer, in its short form if it has one.

        Measured on samples with the least haystack. A sample of that length whose words happen to take more is
        drawn anew.
        """
        return self._needed(tokenizer, frame, short=self.full_from > 0)

    def is_short(self, tokenizer: PreTrainedTokenizerBase, length: int, frame: Frame = PLAIN) -> bool:
        """Whether a text of so many tokens gets the task's short form."""
        return self.full_from > 0 and (length < self.full_from or length < self._needed(tokenizer, frame, short=False))

    def _needed(self, tokenizer: PreTrainedTokenizerBase, frame: Frame, *, short: bool) -> int:
        probes = []
        for number in range(PROBES):
            wanted = Wanted(
                tokenizer=tokenizer, length=0, number=number, depth=self.depths[0], short=short, frame=frame
            )
            probes.append(self.sample(random.Random(f"{self.name} minimum {number}"), wanted))
        counts = token_counts(tokenizer, [probe.text(probe.least, "", frame) for probe in probes])
        return max(counts) + self.reply_tokens + frame.room

    def dataset(self, metadata: Mapping[str, Any]) -> dict[str, datasets.Dataset]:
        """What the harness asks of a task, from the metadata of its YAML and of the run.

        Raises:
            InvalidArgumentError: no tokenizer, a length below the minimum, or a value out of bounds.
        """
        tokenizer = task_tokenizer(metadata)
        frame = chat_frame(tokenizer) if metadata.get("chat") else PLAIN
        lengths = _numbers(self.name, metadata, "lengths", self.lengths)
        depths = _numbers(self.name, metadata, "depths", self.depths) if self.depths[0] is not None else self.depths
        for length in lengths:
            if type(length) is not int or length < 1:
                raise InvalidArgumentError(
                    f"{self.name}: lengths must be whole numbers of tokens, got {shortened(lengths)}; "
                    f"ask for lengths such as [1024]"
                )
        for depth in depths:
            if depth is not None and not 0 <= depth <= 1:
                raise InvalidArgumentError(
                    f"{self.name}: depths must be shares from 0 (first) to 1 (last), got {shortened(depths)}; "
                    f"divide a percentage by 100"
                )
        samples = metadata.get("samples", self.samples)
        if type(samples) is not int or samples < 1:
            raise InvalidArgumentError(
                f"{self.name}: samples must be a whole number of at least 1, got {shortened(samples)}; leave it out"
            )
        rows = [
            row
            for length in lengths
            for depth in depths
            for row in self.rows(
                tokenizer,
                length=length,
                depth=None if depth is None else float(depth),
                samples=samples,
                seed=metadata.get("seed", 0),
                first=metadata.get("first_sample", 0),
                frame=frame,
            )
        ]
        columns = {name: [row[name] for row in rows] for name in FEATURES}
        return {"test": datasets.Dataset.from_dict(columns, features=FEATURES, split=datasets.Split.TEST)}

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        depth: float | None,
        samples: int,
        seed: int,
        first: int = 0,
        frame: Frame = PLAIN,
    ) -> list[dict[str, Any]]:
        """Samples `first` to `samples` - 1 of a length and depth, each exactly as long as asked for.

        Sample i is the same whatever other lengths, depths and numbers of samples are asked for.

        Raises:
            InvalidArgumentError: the length is below the task's minimum, or a text cannot be fitted to it.
        """
        least = self.minimum(tokenizer, frame)
        if length < least:
            raise InvalidArgumentError(
                f"{self.name}: length must hold the task without haystack, got {length!r}; "
                f"ask for at least {least} tokens with this tokenizer"
            )
        short = self.is_short(tokenizer, length, frame)
        wanted = [
            Wanted(tokenizer=tokenizer, length=length, number=number, depth=depth, short=short, frame=frame)
            for number in range(samples)
        ]
        slope = self._unit_tokens(wanted[0])
        rows: dict[int, dict[str, Any]] = {}
        for draw in range(DRAWS):
            missing = [number for number in range(first, samples) if number not in rows]
            drawn = [
                self.sample(
                    random.Random(f"{self.name} {length} {depth} {seed} {number} {draw}"),
                    replace(wanted[number], draw=draw),
                )
                for number in missing
            ]
            drafts = [
                Draft(
                    write=partial(sample.text, frame=frame),
                    size=sample.size or (lambda units: units * slope),
                    filling=sample.filling,
                    least=sample.least,
                    most=sample.most,
                )
                for sample in drawn
            ]
            fits = fitted(tokenizer, drafts, tokens=length - self.reply_tokens - frame.room)
            for number, sample, fit in zip(missing, drawn, fits, strict=True):
                if fit is None:
                    continue
                at = depth if depth is not None else sample.depth(fit.units)
                prompt = sample.prompt(fit.units, fit.filling)
                rows[number] = {
                    "prompt": prompt if frame.begins else joined(prompt, sample.gen_prefix),
                    "gen_prefix": sample.gen_prefix if frame.begins else "",
                    "target": sample.target,
                    "length": length,
                    "depth": at,
                    "sample": number,
                }
            if len(rows) == samples - first:
                return [rows[number] for number in range(first, samples)]
        raise InvalidArgumentError(
            f"{self.name}: every sample must fit its length, got {length!r} which the tokenizer does not come to; "
            f"ask for another length"
        )

    def _unit_tokens(self, wanted: Wanted) -> float:
        """Tokens that a unit of haystack takes, about; the same for every sample."""
        tokenizer = wanted.tokenizer
        probe = self.sample(random.Random(f"{self.name} {wanted.length} {wanted.depth} unit"), wanted)
        if probe.size is not None:
            return 0.0
        bare = token_counts(tokenizer, [probe.text(probe.least, "", wanted.frame)])[0]
        room = wanted.length - self.reply_tokens - wanted.frame.room - bare
        tokens = 0.0
        for units in (8, None):  # a second, longer probe, because numbered units grow with their numbers
            units = units or max(round(room / max(tokens, 1.0)), 8)
            if probe.most is not None:
                units = min(units, probe.most - probe.least)
            longer = probe.text(probe.least + units, "", wanted.frame)
            tokens = (token_counts(tokenizer, [longer])[0] - bare) / units
        return tokens


def scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """RULER's share of targets found in the reply, the same by the exact rule, and the first with its length."""
    reply = results[0]
    contained = [contains(reply, target) for target in doc["target"]]
    whole = [contains_whole(reply, target) for target in doc["target"]]
    score = sum(contained) / len(contained)
    return {"score": score, "exact": sum(whole) / len(whole), "by_length": (doc["length"], score)}


def scores_of_any(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """As `scores`, where the targets are spellings of one answer and any of them counts in full."""
    reply = results[0]
    score = float(any(contains(reply, target) for target in doc["target"]))
    exact = float(any(contains_whole(reply, target) for target in doc["target"]))
    return {"score": score, "exact": exact, "by_length": (doc["length"], score)}


def contains(reply: str, target: str) -> bool:
    """RULER's rule: the target is somewhere in the reply, in small or capital letters; "12" is in "123"."""
    return target.lower() in reply.lower()


def contains_whole(reply: str, target: str) -> bool:
    """The exact rule: as `contains`, but between no letters and digits, also none that a hyphen joins to it."""
    return re.search(rf"(?<!\w)(?<!\w-){re.escape(target)}(?!\w)(?!-\w)", reply, re.IGNORECASE) is not None


def mean_by_length(pairs: Iterable[tuple[int, float]]) -> dict[str, float]:
    """The mean score of each length, shortest first."""
    grouped: dict[int, list[float]] = {}
    for length, score in pairs:
        grouped.setdefault(length, []).append(score)
    return {str(length): sum(values) / len(values) for length, values in sorted(grouped.items())}


def _numbers(task: str, metadata: Mapping[str, Any], key: str, default: Sequence[Any]) -> Sequence[Any]:
    """The numbers under a key: a list, or one alone."""
    given = metadata.get(key, default)
    numbers = [given] if isinstance(given, int | float) else given
    if not isinstance(numbers, list | tuple) or not numbers or not all(isinstance(n, int | float) for n in numbers):
        raise InvalidArgumentError(
            f"{task}: {key} must be a list of numbers, got {shortened(given)}; write them as in [1, 2] or leave it out"
        )
    return numbers
