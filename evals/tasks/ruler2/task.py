"""What the tasks of the second RULER are: one group."""

from ropescale.evals.tasks.base import Group, Retrieval, register

GRADED = (
    *(f"ruler2_mk_niah_{grade}" for grade in ("basic", "easy", "medium", "hard")),
    *(f"ruler2_mv_niah_{grade}" for grade in ("basic", "easy", "medium", "hard")),
    "ruler2_qa_basic",
)
RULER2 = Group(
    title="RULER 2",
    text="The tasks of RULER's second version in grades: one of many keys (mk), several values of one key (mv), and "
    "documents (qa). Columns: length in tokens. Each cell: average score by the published rules, and beneath it the "
    "share by the exact rule. Chance is 25% where a question has to be solved (mk medium and hard), and near 0 "
    "elsewhere but for words that all questions share.",
    members={"ruler2": GRADED},
    summary={"ruler2": "nine graded tasks of RULER's second version; each by its name too: ruler2_mk_niah_basic ..."},
    place=61,
)
register(*(Retrieval(name=name, group=RULER2, place=61) for name in GRADED), file=__file__)
