"""What the task `cloze` is."""

from ropescale.evals.tasks.base import Short, register

CLOZE = Short(
    name="cloze",
    title="Cloze",
    summary="short questions that a model should not lose",
    text="Cloze has four answers to every question, so chance is {chance}.",
    place=70,
    default=True,
    chance=0.25,
)
register(CLOZE, file=__file__)
