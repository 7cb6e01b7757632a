"""Makes grouped.json: what attention reads when far keys stand in groups, by the papers' formulas, in float64.

    python tests/reference/grouped.py

Twenty random geometries for each method. One head reads a text of random vectors; positions are rotated as complex
numbers, for one query and one key at a time. Nothing of ropescale is imported. The vectors are those that `drawn`
draws from the seed of a case.
"""

import cmath
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Distance = Callable[[int, int, int], int]  # query, key, pair -> tokens that the rotation sees


def drawn(seed: int, count: int, width: int) -> list[list[list[float]]]:
    """Queries, keys and values, each [count][width]."""
    source = random.Random(seed)
    return [[[source.gauss(0, 1) for _ in range(width)] for _ in range(count)] for _ in range(3)]


def dynamic_self_extend(length: int, window: int) -> Distance:
    """Exact below the window; beyond it Self-Extend in ceil((i + 1 - w) / (L - w)), at least 1."""

    def seen(i: int, j: int, pair: int) -> int:
        group = max(1, math.ceil((i + 1 - window) / (length - window)))
        return i - j if i - j < window else i // group - j // group + window - window // group

    return seen


def jet_long(length: int, window: int) -> Distance:
    """Exact up to the window; beyond it no shift, in groups of ceil((i + 1) / L)."""

    def seen(i: int, j: int, pair: int) -> int:
        group = math.ceil((i + 1) / length)
        return i - j if i - j <= window else i // group - j // group

    return seen


def dpe(groups: list[int], window: int, pairs: int) -> Distance:
    """Exact below the window; beyond it Self-Extend in groups of the eighth that a pair is in."""

    def seen(i: int, j: int, pair: int) -> int:
        group = groups[math.floor(8 * pair / pairs)]
        return i - j if i - j < window else i // group - j // group + window - window // group

    return seen


def read(case: dict[str, Any], seen: Distance) -> list[list[float]]:
    """What the last query of the text and the others that are asked for read."""
    rotary, width, theta = case["rotary_dim"], case["head_dim"], case["theta"]
    queries, keys, values = drawn(case["seed"], case["tokens"], width)
    pairs = rotary // 2
    found = []
    for i in case["queries"]:
        scores = []
        for j in range(i + 1):
            score = sum(queries[i][e] * keys[j][e] for e in range(rotary, width))
            for p in range(pairs):
                one = complex(queries[i][p], queries[i][p + pairs])
                other = complex(keys[j][p], keys[j][p + pairs])
                turn = cmath.exp(1j * seen(i, j, p) * theta ** (-2 * p / rotary))
                score += (one * turn * other.conjugate()).real
            scores.append(score / math.sqrt(width))
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        visible = list(zip(weights, values[: i + 1], strict=True))
        found.append([math.fsum(w * v[e] for w, v in visible) / math.fsum(weights) for e in range(width)])
    return found


def main() -> None:
    source = random.Random(2026)
    cases = []
    for method in ("dynamic_self_extend", "jet_long", "dpe"):
        for number in range(20):
            rotary = 2 * source.randint(1, 12)
            length = source.randint(4, 48)
            tokens = source.randint(2 * length, 5 * length)
            case: dict[str, Any] = {
                "method": method,
                "rotary_dim": rotary,
                "head_dim": rotary + source.choice([0, 0, 4]),
                "theta": round(math.exp(source.uniform(math.log(10), math.log(1e6))), 3),
                "original_length": length,
                "tokens": tokens,
                "seed": 1000 * len(cases) + number,
                "queries": sorted({source.randrange(tokens), source.randrange(length, tokens), tokens - 1}),
                "knobs": {"window": source.randint(1, length - 1)},
            }
            window = case["knobs"]["window"]
            if method == "dpe":
                case["knobs"]["groups"] = [source.randint(1, 9) for _ in range(8)]
                seen = dpe(case["knobs"]["groups"], window, rotary // 2)
            else:
                seen = {"dynamic_self_extend": dynamic_self_extend, "jet_long": jet_long}[method](length, window)
            case["read"] = read(case, seen)
            cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
