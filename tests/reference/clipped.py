"""Write clipped.json: clipped RoPE's inverse frequencies of 20 random geometries, in float64.

    python tests/reference/clipped.py

The taper (1 + cos x) / 2 is written cos^2(x / 2), and theta's series as powers of one ratio: nothing of ropescale.
arXiv:2602.05258: theta is raised first, then the slowest pairs fall to 0.
"""

import json
import math
import random
from pathlib import Path
from typing import Any


def case(chance: random.Random) -> dict[str, Any]:
    """A random geometry and what the taper makes of it."""
    pairs = chance.choice([2, 4, 8, 16, 24, 32, 40, 48, 64, 128])
    theta = math.exp(chance.uniform(math.log(100), math.log(1e8)))
    clipped = chance.choice([1, pairs, chance.randint(1, pairs), chance.randint(1, pairs)])
    inv_freq = [(1 / theta) ** (k / pairs) for k in range(pairs)]
    if clipped > 1:
        for k in range(clipped):
            inv_freq[pairs - clipped + k] *= math.cos(math.pi * k / (2 * (clipped - 1))) ** 2
        inv_freq[-1] = 0.0  # cos(pi / 2), of which the library leaves 6e-17
    return {"rotary_dim": 2 * pairs, "theta": theta, "clipped": clipped, "inv_freq": inv_freq}


if __name__ == "__main__":
    drawn = random.Random(2602)
    lines = ",\n".join(json.dumps(case(drawn)) for _ in range(20))
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
