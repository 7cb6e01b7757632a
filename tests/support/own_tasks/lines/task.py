"""A loss task that is defined outside the package."""

from ropescale.evals.tasks import Loss, register

LINES = Loss(
    name="lines",
    title="Perplexity of last halves",
    summary="perplexity of the last half of each window",
    text="The last half of every window is scored.",
    noun="perplexity of last halves",
)
register(LINES, file=__file__)
