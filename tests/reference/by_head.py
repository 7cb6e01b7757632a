"""Makes by_head.json: what heads read whose positions are divided by factors of their own, in float64.

    python tests/reference/by_head.py

Twenty random geometries for each method. The heads of one layer read a text of random vectors; positions are rotated
as complex numbers, for one query and one key at a time, and a curve is drawn by de Casteljau's construction. Nothing
of ropescale is imported. The vectors are those that `drawn` draws from the seed of a case.
"""

import cmath
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

Vectors = list[list[list[float]]]  # [heads][tokens][elements]


def drawn(seed: int, heads: int, count: int, width: int) -> Vectors:
    """Random vectors."""
    source = random.Random(seed)
    return [[[source.gauss(0, 1) for _ in range(width)] for _ in range(count)] for _ in range(heads)]


def ms_poe(case: dict[str, Any]) -> list[float]:
    """The factors of the heads: evenly spaced by rank from the layer on that is said to be the first."""
    knobs, heads = case["knobs"], case["heads"]
    if case["layer"] < knobs["start"]:
        return [1.0] * heads
    step = (knobs["high"] - knobs["low"]) / heads
    ranks = knobs["ranks"]
    if isinstance(ranks[0], list):
        ranks = ranks[case["layer"]]
    return [knobs["low"] + step * rank for rank in ranks]


def lpes(case: dict[str, Any]) -> list[float]:
    """The factor of the layer, by halving the polygon of control points again and again at its share of the depth."""
    points = case["knobs"]["points"]
    share = case["layer"] / (case["layers"] - 1)
    while len(points) > 1:
        points = [one + share * (other - one) for one, other in pairwise(points)]
    return points * case["heads"]


def read(case: dict[str, Any], factors: list[float]) -> list[list[list[float]]]:
    """[heads][queries][elements]: what the queries that are asked for read."""
    rotary, width, tokens = case["rotary_dim"], case["head_dim"], case["tokens"]
    queries = drawn(case["seed"], case["heads"], tokens, width)
    keys = drawn(case["seed"] + 1, case["key_heads"], tokens, width)
    values = drawn(case["seed"] + 2, case["key_heads"], tokens, width)
    pairs, found = rotary // 2, []
    for head, factor in enumerate(factors):
        group = head * case["key_heads"] // case["heads"]
        rows = []
        for i in case["queries"]:
            scores = []
            for j in range(i + 1):
                score = sum(queries[head][i][e] * keys[group][j][e] for e in range(rotary, width))
                for p in range(pairs):
                    frequency = case["theta"] ** (-2 * p / rotary)
                    one = complex(queries[head][i][p], queries[head][i][p + pairs]) * cmath.exp(
                        1j * i / factor * frequency
                    )
                    other = complex(keys[group][j][p], keys[group][j][p + pairs]) * cmath.exp(
                        1j * j / factor * frequency
                    )
                    score += (one * other.conjugate()).real
                scores.append(score / math.sqrt(width))
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            seen = list(zip(weights, values[group][: i + 1], strict=True))
            rows.append([math.fsum(w * v[e] for w, v in seen) / math.fsum(weights) for e in range(width)])
        found.append(rows)
    return found


def main() -> None:
    source = random.Random(2027)
    cases = []
    for method, factors in (("ms_poe", ms_poe), ("lpes", lpes)):
        for _ in range(20):
            rotary, layers = 2 * source.randint(1, 6), source.randint(2, 9)
            key_heads, tokens = source.choice([1, 2, 3]), source.randint(8, 60)
            heads = key_heads * source.choice([1, 2])
            case: dict[str, Any] = {
                "method": method,
                "rotary_dim": rotary,
                "head_dim": rotary + source.choice([0, 0, 4]),
                "theta": round(math.exp(source.uniform(math.log(10), math.log(1e6))), 3),
                "original_length": source.randint(4, 48),
                "layers": layers,
                "layer": source.randrange(layers),
                "heads": heads,
                "key_heads": key_heads,
                "tokens": tokens,
                "seed": 1000 * len(cases),
                "queries": sorted({source.randrange(tokens), tokens - 1}),
            }
            if method == "ms_poe":
                low = round(source.uniform(1, 3), 3)
                rankings = [source.sample(range(heads), heads) for _ in range(layers)]
                case["knobs"] = {
                    "low": low,
                    "high": round(low + source.uniform(0, 4), 3),
                    "start": source.randrange(layers),
                    "ranks": source.choice([rankings, rankings[0]]),
                }
            else:
                case["knobs"] = {"points": [round(source.uniform(1, 6), 3) for _ in range(source.randint(1, 6))]}
            case["read"] = read(case, factors(case))
            cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
