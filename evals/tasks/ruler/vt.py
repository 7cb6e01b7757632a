"""Variable tracking of RULER: which variables have a value, through a chain of assignments."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import Any

import datasets

from ropescale.evals.passkey import FILLER
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import noise

HOPS = 4  # assignments after the first, in one chain
TEXT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
ANSWER = (
    "Answer: According to the chain(s) of variable assignment in the text above, "
    f"{HOPS + 1} variables are assigned the value {{value}}, they are:"
)
EXAMPLE_LINES = 15  # of noise in the example; RULER: as many as 500 tokens hold
SHORT_EXAMPLE_LINES = 5  # in the short form, which RULER has not: its shortest length is 4,096 tokens


class VariableTracking(PromptSampler):
    """One chain of five variables in lines of noise, after a worked example with shorter names."""

    name = "vt"
    reply_tokens = 30
    lengths = (4096,)
    samples = 500
    full_from = 1024

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the chain and its places as RULER does, then the example."""
        example_lines = SHORT_EXAMPLE_LINES if wanted.short else EXAMPLE_LINES
        chain = _Chain(rng, 5)
        shown = _Chain(random.Random(rng.getrandbits(64)), 3, within=chain.names)
        example = (
            f"{TEXT.format(context=shown.context(example_lines, ''), value=shown.value)} "
            f"{ANSWER.format(value=shown.value)} {' '.join(shown.names)}\n\n"
        )
        filler = noise(wanted.tokenizer, "\n")

        def prompt(units: int, rest: str) -> str:
            """Example, noise with the chain in it, question."""
            return example + TEXT.format(context=chain.context(units, rest), value=chain.value)

        return Sample(
            prompt=prompt,
            gen_prefix=ANSWER.format(value=chain.value),
            target=chain.names,
            filling=lambda units: filler,
            least=len(chain.names),
        )


class _Chain:
    """Five variables, each assigned the one before it, the first a number."""

    def __init__(self, rng: random.Random, letters: int, within: Sequence[str] = ()):
        names: dict[str, None] = {}
        while len(names) <= HOPS:
            name = "".join(rng.choices(string.ascii_uppercase, k=letters))
            # RULER scores substrings: a name that contains one of the example would count for it
            if not any(name in other for other in within):
                names[name] = None
        self.names = list(names)
        self._places = rng.getstate()
        # by a generator of its own, as RULER draws it by numpy's
        self.value = str(random.Random(rng.getrandbits(64)).randint(10_000, 99_999))
        sources = [self.value, *(f"VAR {name} " for name in self.names[:-1])]  # the space is RULER's
        self._assignments = [f"VAR {name} = {source}" for name, source in zip(self.names, sources, strict=True)]

    def context(self, lines: int, filling: str) -> str:
        """So many lines of noise, each assignment before another one of them, in order, and the filling.

        So there is a line between any two assignments, and one after the last.
        """
        stream = random.Random()
        stream.setstate(self._places)
        before = sorted(stream.sample(range(lines), len(self.names)))
        parts = [FILLER] * lines
        for at, assignment in reversed([*zip(before, self._assignments, strict=True)]):
            parts.insert(at, assignment)
        return "\n".join(parts) + filling


VARIABLE_TRACKING = VariableTracking()


def dataset(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_vt`; the README names the keys that the metadata may have."""
    return VARIABLE_TRACKING.dataset(metadata)
