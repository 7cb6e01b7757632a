"""Documents with a number each: which one is a text from."""

from __future__ import annotations

import random
from typing import Any

import datasets

from ropescale.evals.tasks.attribution.samples import passages
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import noise

TEXT = (
    "Below are some documents. I will give you a text at the end. Please find the document index of the text. Only "
    "give me the index without any document contents.\n\n{documents}\n\nText: {text}\n"
)
ANSWER = "Most relevant document index:"
DOCUMENT = "Document {number}:\n{text}"


class Documents(PromptSampler):
    """Passages of speeches in a random order, one of which is given again; units are the others."""

    name = "ruler2_qa_basic"
    reply_tokens = 16
    lengths = (4096,)
    samples = 100

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the passage, its number, and the others."""
        every = [one.text for one in passages()]
        rng.shuffle(every)
        asked, *others = every
        number = str(rng.randint(1_000_000, 9_999_999))
        state = rng.getrandbits(64)
        filler = noise(wanted.tokenizer, " ")

        def prompt(units: int, rest: str) -> str:
            """The documents, the first of the others going on with the filling, and the text."""
            stream = random.Random(state)
            numbers = {number: None}
            while len(numbers) <= units:
                numbers[str(stream.randint(1_000_000, 9_999_999))] = None
            texts = [asked, *(others[i % len(others)] + (rest if i == 0 else "") for i in range(units))]
            shown = [DOCUMENT.format(number=i, text=text) for i, text in zip(numbers, texts, strict=True)]
            stream.shuffle(shown)
            return TEXT.format(documents="\n\n".join(shown), text=asked)

        return Sample(prompt=prompt, gen_prefix=ANSWER, target=[number], filling=lambda units: filler, least=1)


DOCUMENTS = Documents()


def dataset(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_ruler2_qa_basic`; the README names the keys that the metadata may have."""
    return DOCUMENTS.dataset(metadata)
