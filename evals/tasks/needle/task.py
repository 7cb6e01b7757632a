"""What the task `needle` is."""

from ropescale.evals.tasks.base import Retrieval, register

NEEDLE = Retrieval(
    name="needle",
    title="Needle by depth and length",
    summary="a number in real text, by depth and length",
    text="A sentence with a number is put into real text and asked for at the end. Columns: length of the prompt in "
    "tokens, reply included; rows: how deep the sentence lies. Each cell: share of the prompts whose reply holds the "
    "number, and how many of how many.",
    place=50,
    depths=True,
)
register(NEEDLE, file=__file__)
