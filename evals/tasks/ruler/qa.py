"""The two question tasks of RULER: SQuAD and HotpotQA, with as many further documents as fit.

The questions are not shipped. They come from a local file in the official format or, where a hub can be reached,
from there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.words import drawn_of
from ropescale.evals.tokens import Cuts, token_counts

TEXT = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    "\n\nThe following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    "\n\nQuestion: {question}"
)
ANSWER = "Answer:"
DOCUMENT = "Document {number}:\n{text}"
SHORTEST_DOCUMENT = 40  # tokens; how many documents a length can need is reckoned with it
STRIDE = 997  # questions further, where the documents of one do not fit


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with the documents that answer it."""

    text: str
    answers: tuple[str, ...]  # spellings; any of them counts
    documents: tuple[str, ...]  # all have to be given
    related: tuple[str, ...] = ()  # of the same article: the first distractors


class QuestionTask(PromptSampler):
    """A question after its documents and others, in a random order."""

    reply_tokens = 32
    lengths = (4096,)
    samples = 500

    def __init__(self, name: str, questions: Sequence[Question]):
        self.name = name
        self._questions = questions
        self._documents = sorted({text for question in questions for text in (*question.documents, *question.related)})
        if len(self._documents) < 2 or not questions:
            raise InvalidArgumentError(
                f"{name}: the data must hold questions and at least 2 documents, got {len(questions)} questions and "
                f"{len(self._documents)} documents; give the whole official file"
            )

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Takes the question of the sample's number and draws the other documents and the order of all."""
        question = self._questions[(wanted.number + STRIDE * wanted.draw) % len(self._questions)]
        gold = len(question.documents)
        state = rng.getstate()
        order = [*question.documents, *rng.sample(question.related, len(question.related))]
        known = set(order)
        most = gold + max(wanted.length // SHORTEST_DOCUMENT, 2)
        # RULER draws once: from the related documents where they are enough, else from the others alone
        rng.setstate(state)
        others = [text for text in self._documents if text not in known]
        order += drawn_of(rng, others, min(max(most - len(order), 0), len(others)))
        # a small file: its other documents come again
        distractors = order[gold:] or others[:1] or order
        while len(order) < most + 2:
            order += distractors
        seed = rng.getrandbits(64)
        sizes = [0, *accumulate(_sizes(wanted.tokenizer, order))]

        def prompt(units: int, rest: str) -> str:
            """So many documents in a random order, then the filling, which is the beginning of one more."""
            given = order[:units]
            random.Random(seed).shuffle(given)
            numbered = [DOCUMENT.format(number=i, text=text) for i, text in enumerate([*given, rest], 1) if text]
            return TEXT.format(context="\n\n".join(numbered), question=question.text)

        return Sample(
            prompt=prompt,
            gen_prefix=ANSWER,
            target=list(question.answers),
            filling=lambda units: _cuts(wanted.tokenizer, f"{order[units]} {order[units + 1]}"),
            size=lambda units: sizes[units],
            least=gold,
            most=most,
        )


def squad(squad: str | None = None, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_qa_1`; `squad` is the path of SQuAD's dev-v2.0.json.

    Raises:
        InvalidArgumentError: no such file and no hub, or as `PromptSampler.dataset`.
    """
    return QuestionTask("qa_1", _squad(squad)).dataset(metadata)


def hotpotqa(hotpotqa: str | None = None, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_qa_2`; `hotpotqa` is the path of HotpotQA's hotpot_dev_distractor_v1.json.

    Raises:
        InvalidArgumentError: no such file and no hub, or as `PromptSampler.dataset`.
    """
    return QuestionTask("qa_2", _hotpotqa(hotpotqa)).dataset(metadata)


@cache
def _squad(path: str | None) -> list[Question]:
    """The answerable questions of SQuAD 2.0, in its order."""
    if path is None:
        rows = _from_hub("qa_1", "squad", "SQuAD's dev-v2.0.json", "rajpurkar/squad_v2")
        articles: dict[str, list[Any]] = {}
        for row in rows:
            articles.setdefault(row["title"], []).append((row["context"], row["question"], row["answers"]["text"]))
        entries = list(articles.values())
    else:
        entries = _parsed(
            "qa_1",
            "squad",
            "SQuAD's dev-v2.0.json",
            path,
            lambda content: [
                [
                    (
                        _text(paragraph["context"]),
                        _text(asked["question"]),
                        [_text(one["text"]) for one in asked["answers"]],
                    )
                    for paragraph in article["paragraphs"]
                    for asked in paragraph["qas"]
                ]
                for article in content["data"]
            ],
        )
    questions = []
    for entry in entries:
        contexts = dict.fromkeys(context for context, _, _ in entry)
        questions += [
            Question(
                text=text,
                answers=tuple(dict.fromkeys(answers)),
                documents=(context,),
                related=tuple(other for other in contexts if other != context),
            )
            for context, text, answers in entry
            if answers  # SQuAD 2.0 also asks what its paragraph does not say
        ]
    return questions


@cache
def _hotpotqa(path: str | None) -> list[Question]:
    """The questions of HotpotQA with their ten paragraphs, in its order."""
    if path is None:
        rows = _from_hub("qa_2", "hotpotqa", "HotpotQA's hotpot_dev_distractor_v1.json", "hotpotqa/hotpot_qa")
        entries = [
            (
                row["question"],
                row["answer"],
                list(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
            )
            for row in rows
        ]
    else:
        entries = _parsed(
            "qa_2",
            "hotpotqa",
            "HotpotQA's hotpot_dev_distractor_v1.json",
            path,
            lambda content: [
                (
                    _text(entry["question"]),
                    _text(entry["answer"]),
                    [(_text(title), [_text(one) for one in sentences]) for title, sentences in entry["context"]],
                )
                for entry in content
            ],
        )
    return [
        Question(
            text=text,
            answers=(answer,),
            documents=tuple(f"{title}\n{''.join(sentences)}" for title, sentences in paragraphs),
        )
        for text, answer, paragraphs in entries
    ]


def _parsed(task: str, key: str, file: str, path: str, entries: Callable[[Any], list[Any]]) -> list[Any]:
    """What a local file holds, in the official format."""
    try:
        return entries(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{task}: {key} must be the path of {file}, got {path!r} ({type(error).__name__}: {error}); "
            f"download the official file and name it"
        ) from error


def _text(value: Any) -> str:
    """A value of a file that has to be a text."""
    if not isinstance(value, str):
        raise TypeError(f"{shortened(value)} where a text should be")
    return value


def _from_hub(task: str, key: str, file: str, repository: str) -> Iterable[Any]:
    """The validation rows of a data set of the hub."""
    name = "distractor" if key == "hotpotqa" else None
    try:
        rows: Iterable[Any] = datasets.load_dataset(repository, name, split="validation")
        return rows
    except Exception as error:  # the hub's client lets the errors of its HTTP library through, whichever that is
        raise InvalidArgumentError(
            f"{task}: the questions must come from a file or from the hub ({repository}), got no {key} and no answer "
            f'({type(error).__name__}); download {file} and name it, as in metadata={{"{key}": "PATH"}}'
        ) from error


@cache
def _measured(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens of the documents measured so far with a tokenizer."""
    return {}


def _sizes(tokenizer: PreTrainedTokenizerBase, order: Sequence[str]) -> list[int]:
    """Tokens that each document takes in the text, about; each is encoded once."""
    known = _measured(tokenizer)
    new = [text for text in dict.fromkeys(order) if text not in known]
    shown = [f"{DOCUMENT.format(number=10, text=text)}\n\n" for text in new]
    known.update(zip(new, token_counts(tokenizer, shown), strict=True))
    return [known[text] for text in order]


@cache
def _cuts(tokenizer: PreTrainedTokenizerBase, text: str) -> Cuts:
    return Cuts(tokenizer, text)
