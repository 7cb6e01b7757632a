"""A retrieval task that is defined outside the package."""

from ropescale.evals.tasks import Retrieval, register

LOOKUP = Retrieval(
    name="lookup",
    title="Lookup by depth and length",
    summary="the number of a door, by depth and length",
    text="The number of a door is hidden among steps and asked for at the end.",
    depths=True,
)
register(LOOKUP, file=__file__)
