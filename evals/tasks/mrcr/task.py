"""What the three tasks of MRCR are: one group."""

from ropescale.evals.tasks.base import Group, Retrieval, register

MRCR = Group(
    title="MRCR",
    text="In a long conversation the same request is made 2, 4 or 8 times, among others like it, and one of the "
    "replies is asked for by its number. Columns: length in tokens. Each cell: how much of that reply was copied, as "
    "the ratio of matching letters, and beneath it the share of replies that are the same to the letter. Another "
    "reply in its place scores 29 on average.",
    summary={"mrcr_2, mrcr_4, mrcr_8": "MRCR: one of 2, 4 or 8 replies to the same request, named by its number"},
    place=64,
)
register(*(Retrieval(name=f"mrcr_{number}", group=MRCR, place=64) for number in (2, 4, 8)), file=__file__)
