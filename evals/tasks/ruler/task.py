"""What the thirteen tasks of RULER are: one group."""

from ropescale.evals.tasks.base import Group, Retrieval, register

OFFLINE = (
    *(f"niah_single_{i}" for i in (1, 2, 3)),
    *(f"niah_multikey_{i}" for i in (1, 2, 3)),
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
)
QUESTIONS = ("qa_1", "qa_2")  # which need a download or a file
RULER = Group(
    title="RULER",
    text="Each task hides what it asks for in a text of exactly this many tokens, reply included. Columns: length in "
    "tokens. Each cell: average share of the answers that the reply holds as text (RULER's rule), and beneath it the "
    "share by the exact rule, which wants each answer as a whole word or number.",
    members={"ruler": OFFLINE, "ruler_full": (*OFFLINE, *QUESTIONS)},
    summary={
        "ruler": "the 11 tasks of RULER that need no download; each by its name too: niah_single_1 ... vt, cwe, fwe",
        "qa_1, qa_2": """RULER's questions: need --metadata '{"squad": "dev-v2.0.json"}' or '{"hotpotqa": ...}', """
        "or a hub",
    },
    place=60,
    alone=True,
)
register(*(Retrieval(name=name, group=RULER, place=60) for name in (*OFFLINE, *QUESTIONS)), file=__file__)
