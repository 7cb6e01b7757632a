"""What does a running server compute? It is asked, and its answers are compared with models.

The server says which token comes next after prompts below the original length, around it and beyond it. The reference
is run in Transformers on this machine as it is meant, and in each way in which engines are known to misread it; what
the server computes is the nearest of them, if it is nearest by far and what is left is rounding.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ropescale.checkpoints import resolve
from ropescale.checks import as_float, require_whole
from ropescale.console import Console
from ropescale.contents import read_tokenizer
from ropescale.errors import CheckpointError, InvalidArgumentError, shortened
from ropescale.evals import texts
from ropescale.evals.tokens import prompt_ids
from ropescale.export.source import AS_IT_IS, Source, requested, source_of
from ropescale.export.verification import prompt_of
from ropescale.export.weights import loaded
from ropescale.heads import require_language_model
from ropescale.methods import Method
from ropescale.serving.asking import Heard, Passage, Said, Vocabulary, ask, served_name
from ropescale.serving.comparison import TOLERANCE, Distance, Nearest, Row, divergence, nearest
from ropescale.serving.endpoint import Endpoint
from ropescale.serving.readings import CUT, MEANT, Cut, Meaning, Reading, meaning_of, standing
from ropescale.trust import takes_trust

LETTERS = 16  # of one token, at most, in the mean
PLACES = 16  # prompts of each length: the last so many beginnings of one passage
SHORTEST = 16  # tokens of a passage within which readings hardly differ, so that what is seen is rounding
NONE, OPEN = "none of the readings", "cannot tell"


@dataclass(frozen=True, kw_only=True)
class ServerVerdict:
    """What a running server computes."""

    url: str
    served: str  # the name of the model there
    reference: str
    method: str  # what the reference means, in words
    found: str  # "as meant", the name of a misreading, "none of the readings" or "cannot tell"
    says: str  # the same in a sentence
    remedy: str  # what to do; empty where nothing is
    places: int  # prompts that were compared
    original_length: int  # tokens
    lengths: tuple[int, ...]  # of the passages that they are the beginnings of, in tokens
    refused: int | None  # tokens of a prompt that the server refused
    read: dict[int, int]  # tokens that the server says it read of prompts that are longer, by their length
    tolerance: float  # nats
    distances: tuple[Distance, ...]  # from every reading, the nearest first

    @property
    def as_meant(self) -> bool:
        """Whether the server computes what the reference means, at every length that it was asked."""
        return self.found == MEANT

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        first = f"{self.url} ({self.served}): {self.found}: {self.says}"
        return f"{first}; {self.remedy}" if self.remedy else first


@takes_trust
def verify_server(
    url: str,
    *,
    reference: str | Path,
    method: str | Method | None = None,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    existing: str = "error",
    layers: str = "global",
    served: str | None = None,
    api_key: str | None = None,
    timeout: float = 60.0,
    lengths: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
    trust_remote_code: bool = False,
    **knobs: Any,
) -> ServerVerdict:
    """Ask a running OpenAI-compatible server what comes next, and say which reading of the reference it computes.

    Args:
        url: the address of the server, as in "http://127.0.0.1:8000".
        reference: what it is meant to serve: a folder saved patched or exported, `tiny`, `smollm2` or a hub id.
        method: extends the reference as `ropescale.patch` does, with `factor` or `target_length` and the knobs, where
            it is the unmodified checkpoint; left out of one that is extended already.
        factor: as in `patch`, and so are `target_length`, `original_length`, `existing`, `layers`, `knobs`.
        target_length: see `factor`.
        original_length: see `factor`.
        existing: see `factor`.
        layers: see `factor`.
        served: the name that the server has for the model; left out where it serves one.
        api_key: the name of an environment variable that holds the key.
        timeout: seconds for one answer.
        lengths: of the prompts in tokens; by default 16, half the original length, just beyond it and twice as much,
            and the server has to take one of the target length besides. Within 16 tokens readings hardly differ, so
            that rounding is seen alone; they are added to longer lengths.
        tolerance: the largest divergence, in nats over all prompts, that counts as rounding.
        trust_remote_code: run Python code that lies in the reference.
        **knobs: of the method.

    Example:
        >>> from ropescale.serving import verify_server
        >>> try:
        ...     verify_server("http://127.0.0.1:9", reference="tiny", method="yarn", factor=4)
        ... except ropescale.RopescaleError as error:
        ...     print(type(error).__name__)
        ServerError

    Raises:
        CheckpointError: no checkpoint there, or one that cannot be read.
        InvalidArgumentError: arguments that break their rules.
        ServerError: no server there, or none that says what it was asked.
        UnsupportedModelError: no language model, or one of a family that is not patched.
    """
    asked = locals()
    endpoint = Endpoint.of(url, api_key=api_key, timeout=timeout)
    if not 0 < as_float(tolerance) < float("inf"):
        raise InvalidArgumentError(
            f"tolerance: must be a number of nats above 0, got {shortened(tolerance)}; leave it out for {TOLERANCE:g}"
        )
    source = _source(reference, asked)
    meaning = meaning_of(source)
    chosen = _lengths(lengths, meaning)
    assert source.folder is not None
    vocabulary = Vocabulary(read_tokenizer(source.folder) if source.has_tokenizer() else None)
    passages = [_passage(length, vocabulary.tokenizer, source) for length in chosen]
    reach = None
    if lengths is None and meaning.target_length - 1 > chosen[-1]:
        whole = _passage(meaning.target_length - 1, vocabulary.tokenizer, source)
        reach = dataclasses.replace(whole, ends=whole.ends[-1:])
    with Console(stderr=True).status(f"{endpoint.url}: prompts of {', '.join(map(str, chosen))} tokens") as status:
        heard = ask(endpoint, served_name(endpoint, served), passages, vocabulary, reach)
        longest = max((one.end for one in heard.said), default=0)
        cuts = sorted({*heard.read.values(), meaning.original_length} & set(range(1, longest)))
        readings = meaning.with_cuts(cuts[:4])
        status.update(f"{len(readings)} readings of {reference}")
        model = loaded(source.folder).float().eval()
        rows = [_computed(model, meaning, reading, passages, heard.said) for reading in readings]
    every = [
        [divergence(one.logprobs, row) for one, row in zip(heard.said, of_reading, strict=True)] for of_reading in rows
    ]
    distances = [
        _distance(reading, values, passages, heard.said) for reading, values in zip(readings, every, strict=True)
    ]
    return _verdict(
        ServerVerdict(
            url=endpoint.url,
            served=heard.served,
            reference=str(reference),
            method=meaning.method,
            found="",
            says="",
            remedy="",
            places=len(heard.said),
            original_length=meaning.original_length,
            lengths=tuple(passage.length for passage in passages),
            refused=None if heard.refused is None else heard.refused.length,
            read=heard.read,
            tolerance=tolerance,
            distances=tuple(distances),
        ),
        readings,
        nearest(distances, every, rows, tolerance),
        heard,
    )


def _source(reference: str | Path, asked: Mapping[str, Any]) -> Source:
    """The reference, extended by the method if one is given."""
    if Path(resolve(str(reference))).expanduser().is_file():
        raise CheckpointError(
            f"reference: must be the folder of a checkpoint or a hub id, got the file {str(reference)!r}; give the "
            f"checkpoint that it was made from, with the method where that is not extended"
        )
    request = requested({**asked, "adapter": None})
    source = source_of(reference, request, as_it_is=asked["method"] == AS_IT_IS)
    require_language_model(source.config, source.name)
    return source


def _lengths(given: Sequence[int] | None, meaning: Meaning) -> list[int]:
    """The lengths of the passages, the shortest first."""
    original, longest = meaning.original_length, meaning.target_length - 1
    if not given:
        wanted = (original // 2, original + PLACES // 2, 2 * original)
        return sorted({max(1, min(length, longest)) for length in (SHORTEST, *wanted)})
    for length in given:
        require_whole(
            "lengths:",
            length,
            1,
            longest,
            rule=f"whole numbers of tokens, each from 1 to {longest}, which leaves room for one more",
            remedy="give other lengths, or leave them out",
        )
    return sorted({*given, *([SHORTEST] if min(given) > 4 * SHORTEST else [])})


def _passage(length: int, tokenizer: Any, source: Source) -> Passage:
    """A real text of this length, or random tokens, whose end repeats a stretch from its first quarter.

    What comes after that lies far back, so that a prompt that was cut is seen.
    """
    ends = tuple(range(max(1, length - PLACES + 1), length + 1))
    if tokenizer is None:
        return Passage(ids=prompt_of(range(int(source.text.vocab_size)), length, 0), ends=ends)
    ids: list[int] = []
    for document in texts.sample():
        text = document.text[: LETTERS * (length - len(ids))]
        ids += (
            prompt_ids(tokenizer, text) if not ids else tokenizer.encode(text, add_special_tokens=False, verbose=False)
        )
        if len(ids) >= length:
            break
    ids = (ids * (length // max(1, len(ids)) + 1))[:length]
    start, repeated = length // 8, min(32, length // 4)
    ids[length - repeated :] = ids[start : start + repeated]
    again: list[int] = tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=True), verbose=False)
    return Passage(ids=again if len(again) == length else ids, ends=ends)  # as the text comes back, if it is as long


def _computed(
    model: nn.Module, meaning: Meaning, reading: Reading, passages: Sequence[Passage], said: Sequence[Said]
) -> list[Row]:
    """What a reading computes after every prompt that the server answered: of the tokens that it named."""
    rows: list[Row] = []
    with standing(model, meaning, reading) as read:
        for place, passage in enumerate(passages):
            answers = [one for one in said if one.passage == place]
            if not answers:
                continue
            expected = _expected(read, passage, [one.end for one in answers], reading.cut, by_length=meaning.by_length)
            rows += [
                {token: float(row[token]) for token in one.logprobs if token < len(row)}
                for one, row in zip(answers, expected, strict=True)
            ]
    return rows


def _distance(reading: Reading, every: Sequence[float], passages: Sequence[Passage], said: Sequence[Said]) -> Distance:
    """How far what the server says is from what a reading computes, in the mean."""
    found: dict[int, list[float]] = {}
    for one, value in zip(said, every, strict=True):
        found.setdefault(passages[one.passage].length, []).append(value)
    return Distance(
        name=reading.name,
        says=reading.says,
        mean=sum(every) / len(every),
        by_length={length: sum(values) / len(values) for length, values in found.items()},
    )


@torch.no_grad()
def _expected(
    model: nn.Module, passage: Passage, ends: Sequence[int], cut: Cut | None, *, by_length: bool
) -> list[torch.Tensor]:
    """The log-probabilities [vocabulary] of what comes after each beginning."""
    if cut is None and not by_length:
        kept = ends[-1] - ends[0] + 1
        ids = torch.tensor([passage.ids[: ends[-1]]])
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0]
        return [torch.log_softmax(logits[end - ends[-1] - 1].float(), dim=-1) for end in ends]
    prompts = [tuple(passage.ids[:end] if cut is None else cut.of(passage.ids[:end])) for end in ends]
    rows: dict[tuple[int, ...], torch.Tensor] = {}
    for _, alike in itertools.groupby(sorted({*prompts}, key=len), key=len):
        batch = [*alike]
        logits = model(input_ids=torch.tensor(batch), use_cache=False, logits_to_keep=1).logits[:, -1]
        rows |= zip(batch, torch.log_softmax(logits.float(), dim=-1), strict=True)
    return [rows[prompt] for prompt in prompts]


def _verdict(blank: ServerVerdict, readings: Sequence[Reading], near: Nearest, heard: Heard) -> ServerVerdict:
    """The verdict that distances and what the server refused or cut come to."""
    distances, first = blank.distances, readings[near.first]
    alike = [readings[place] for place in near.alike]
    if first.name != MEANT and any(one.name == MEANT for one in alike):  # rounding is larger than what parts them
        alike = [first, *(one for one in alike if one.name != MEANT)]
        first = next(one for one in readings if one.name == MEANT and one.cut is None)
    mean = distances[near.first].mean
    other = [one.mean for place, one in enumerate(distances) if place not in (near.first, *near.alike)]
    measured = f"{mean:.1e} nats off over {blank.places} prompts"
    if other:
        measured += f", the nearest other {min(other):.1e}"
    found, says, remedy = first.name, f"{first.says}, {measured}", first.remedy
    beyond = max(distances[near.first].by_length) > blank.original_length  # or what differs there was not asked
    if not near.within:
        found, says = NONE, f"the nearest is {first.says}, {mean:.1e} nats off over {blank.places} prompts"
        lengths = ", ".join(f"{value:.1e} at {length:,}" for length, value in distances[near.first].by_length.items())
        says += f" ({lengths} tokens), which is more than rounding"
        remedy = "see that the server has the weights of the reference, and with which flags it was started"
    elif near.rivals or (alike and (not beyond or any(one.cut for one in (first, *alike)))):
        found = OPEN
        others = ", ".join(readings[place].says for place in (*near.alike, *near.rivals))
        says = (
            f"the nearest is {first.says}, {mean:.1e} nats off over {blank.places} prompts, but not by far: {others}"
        )
        longer = "longer prompts" if beyond else f"prompts of more than {blank.original_length:,} tokens"
        remedy = (
            f"its weights are rounded by as much as these differ, or it computes none of them: ask {longer} too, with "
            f"lengths=[N], or a server with weights in more bits"
        )
    else:
        if first.also:
            says += f"; the same here: {', '.join(first.also)}"
        if alike:
            says += f"; less apart than rounding: {', '.join(one.says for one in alike)}"
    short = _short(blank, heard)
    meant = any(one.name == MEANT for one in (first, *alike, *(readings[place] for place in near.rivals)))
    if short and (found in (MEANT, CUT) or (found == OPEN and meant) or (found == NONE and blank.read)):
        shorter = "shorter ones are read as meant" if found == MEANT else says
        found, says = CUT, f"{short}; {shorter}"
        remedy = f"give the server room for {heard.longest:,} tokens, and see that nothing before it cuts"
    elif short:
        says += f"; {short}"
    ordered = sorted(distances, key=lambda one: one.mean)
    return dataclasses.replace(blank, found=found, says=says, remedy=remedy, distances=tuple(ordered))


def _short(blank: ServerVerdict, heard: Heard) -> str:
    """What the server refused or says that it cut, in words; empty for nothing."""
    if heard.refused is not None:
        return f"a prompt of {heard.refused.length:,} tokens is refused ({shortened(heard.refused.said)})"
    if not blank.read:
        return ""
    longest = max(blank.read)
    return f"the server says that it read {blank.read[longest]:,} tokens of a prompt of {longest:,}"
