"""Two files of our own making in the formats of SQuAD and HotpotQA, for whoever reads questions from such files."""

from __future__ import annotations

from typing import Any

RIVERS = ("Asper", "Brenn", "Calder", "Dunmore", "Esk", "Farrow")
SMALL, LARGE = 3, 40  # paragraphs of an article: fewer and more than a prompt of 1,500 tokens of `tiny` holds
ARTICLES = 100
QUESTIONS, PARAGRAPHS, OWN = 40, 10, 8  # of the second file, of each question, and those not of the question before


def squad() -> dict[str, Any]:
    """Articles on towns, the second of which has many paragraphs; each asks what it says and what it does not."""
    return {
        "data": [
            {
                "title": f"Town {town}",
                "paragraphs": [_paragraph(town, part) for part in range(LARGE if town == 1 else SMALL)],
            }
            for town in range(ARTICLES)
        ]
    }


def _paragraph(town: int, part: int) -> dict[str, Any]:
    bridges = str(100 * town + part + 11)
    river = RIVERS[(town + part) % len(RIVERS)]
    return {
        "context": f"Town {town} has {bridges} bridges in its district {part}, over the river {river} and its arms.",
        "qas": [
            {"question": "How many moons has it?", "answers": [], "is_impossible": True},
            {
                "question": f"How many bridges has district {part} of town {town}?",
                "answers": [{"text": bridges}, {"text": f"{bridges} bridges"}, {"text": bridges}],
                "is_impossible": False,
            },
        ],
    }


def hotpotqa() -> list[dict[str, Any]]:
    """Questions on builders of bridges with ten paragraphs each, some of them of the question before."""
    return [
        {
            "question": f"Which river is crossed by the bridge of builder {builder}?",
            "answer": f"{RIVERS[builder % len(RIVERS)]}-{builder}",
            "context": [_of_builder(builder, part) for part in range(OWN)]
            + [_of_builder(builder - 1, part) for part in range(PARAGRAPHS - OWN)],
        }
        for builder in range(QUESTIONS)
    ]


def _of_builder(builder: int, part: int) -> list[Any]:
    river = f"{RIVERS[builder % len(RIVERS)]}-{builder}"
    return [f"Bridge {builder}-{part}", [f"Builder {builder} made bridge {part} over {river}.", " It is old."]]
