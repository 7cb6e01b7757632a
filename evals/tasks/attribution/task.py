"""What the task `attribution` is."""

from ropescale.evals.tasks.base import Retrieval, register

ATTRIBUTION = Retrieval(
    name="attribution",
    title="Attribution of a quotation",
    summary="whose address, of many that are quoted from, a sentence is from",
    text="Passages from addresses of presidents are given, a sentence is quoted from one of them, and what is asked "
    "for is whose address it is from. Columns: length in tokens. Each cell: share of the prompts where the model "
    "finds the right one the likeliest of four that are all there, so chance is 25%, and beneath it the share where "
    "it would have written it by itself.",
    place=66,
)
register(ATTRIBUTION, file=__file__)
