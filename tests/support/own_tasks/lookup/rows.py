"""The rows of `lookup`: a sentence with a number before or after steps."""

from ropescale.evals.tasks.retrieval import PromptSampler, Sample
from ropescale.evals.tokens import Cuts


class Lookup(PromptSampler):
    """The number of a door, among steps."""

    name = "lookup"
    reply_tokens = 8
    depths = (0.0, 1.0)

    def sample(self, rng, wanted):
        """Draws a number, which stands first or last."""
        door = f"The door has number {rng.randint(100, 999)}."
        steps = Cuts(wanted.tokenizer, "Go on. Turn left. Turn right.", repeated=True)
        first = (wanted.depth or 0.0) < 0.5
        return Sample(
            prompt=lambda units, rest: (
                (f"{door} {rest}" if first else f"{rest} {door}") + "\nWhat number has the door?"
            ),
            gen_prefix="The door has number",
            target=[door.split()[-1].strip(".")],
            filling=lambda units: steps,
            size=lambda units: 0.0,
            most=0,
        )


def dataset(**metadata):
    """What the harness asks for."""
    return Lookup().dataset(metadata)
