"""Write mrrope.json: MrRoPE's inverse frequencies of 20 random geometries, in float64, as the paper counts them.

    python tests/reference/mrrope.py

Pairs are numbered along theta's series, which is gone along turn by turn: no logarithm, nothing of ropescale. The
stretch of a pair is the product of the steps before it (arXiv:2601.22181, section 3), where ropescale has their sum in
closed form. As in the authors' released code the series goes on beyond the last pair, up to twice as many less one.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

FAST, SLOW = 32, 1  # turns over the original length


def stretches(pairs: int, theta: float, length: int, factor: float, variant: str) -> list[float]:
    """By how much each pair is slowed."""
    turns = [length * theta ** (-k / pairs) / (2 * math.pi) for k in range(2 * pairs)]
    low = max((k for k, turned in enumerate(turns) if turned >= FAST), default=0)
    high = next((k for k, turned in enumerate(turns) if turned <= SLOW), 2 * pairs - 1)
    steps = high - low
    found, stretch = [], factor if high == 0 else 1.0
    for k in range(pairs):
        found.append(stretch)
        if low <= k < high:
            growing = 2 * (1 + k - low) / ((1 + steps) * steps)
            stretch *= factor ** (1 / steps if variant == "uni" else growing)
    return found


def case(chance: random.Random) -> dict[str, Any]:
    """A random geometry and what MrRoPE makes of it."""
    pairs = chance.choice([4, 8, 16, 24, 32, 40, 48, 64, 128])
    theta = math.exp(chance.uniform(math.log(100), math.log(1e8)))
    length = round(math.exp(chance.uniform(math.log(5), math.log(2**18))))
    factor = chance.uniform(1.2, 32)
    given = {"rotary_dim": 2 * pairs, "theta": theta, "original_length": length, "factor": factor}
    variants = {
        variant: [
            theta ** (-k / pairs) / stretch
            for k, stretch in enumerate(stretches(pairs, theta, length, factor, variant))
        ]
        for variant in ("pro", "uni")
    }
    return {**given, "inv_freq": variants, "attention_factor": 0.1 * math.log(factor) + 1}


if __name__ == "__main__":
    drawn = random.Random(2601)
    lines = ",\n".join(json.dumps(case(drawn)) for _ in range(20))
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
