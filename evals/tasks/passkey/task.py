"""What the task `passkey` is."""

from ropescale.evals.tasks.base import Retrieval, register

PASSKEY = Retrieval(
    name="passkey",
    title="Passkey by depth and length",
    summary="a number in filler, by depth and length",
    text="A five-digit number is hidden in filler and asked for at the end. Columns: length of the prompt in tokens, "
    "reply included; rows: how deep the number lies. Each cell: share of the prompts whose reply holds the number, "
    "and how many of how many.",
    place=40,
    default=True,
    quick=True,
    depths=True,
)
register(PASSKEY, file=__file__)
