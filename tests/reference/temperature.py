"""Makes temperature.json: what each rule multiplies queries by, from its formula, with nothing but Python's math.

    python tests/reference/temperature.py

Twenty geometries drawn by a seed; positions within the original length, at its end, and up to the target.
"""

import json
import math
import random
from pathlib import Path


def log_n(n, length, factor, c):
    return 1 + c * (max(1.0, math.log(n, length)) - 1)


def llama4(n, length, factor, c):
    steps = 0
    while (steps + 1) * length <= n:
        steps += 1
    return 1 + c * math.log(1 + steps)


def drope(n, length, factor, c):
    return 1 + c * math.log(factor)


def scalable(n, length, factor, c):
    mean = math.fsum(math.log(k) for k in range(1, length + 1)) / length
    return c * math.log(n) / mean


def yarn(n, length, factor, c):
    attention_factor = 1.0 if n <= length else c * math.log(n / length) + 1
    return attention_factor * attention_factor


PUBLISHED = {log_n: 1.0, llama4: 0.1, drope: 0.103, scalable: 1.0, yarn: 0.1}


def main():
    draw = random.Random(7)
    cases = []
    for _ in range(20):
        length = draw.choice([draw.randint(2, 300), draw.randint(300, 9000)])
        factor = round(draw.uniform(1, 33), 3)
        last = int(length * factor) - 1
        positions = sorted({0, 1, length // 2, length - 2, length - 1, length, 2 * length - 1, last, *(
            draw.randint(0, last) for _ in range(6))})  # fmt: skip
        for rule, published in PUBLISHED.items():
            for coefficient in (published, round(draw.uniform(0, 2), 3)):
                cases.append(
                    {
                        "rule": rule.__name__,
                        "coefficient": coefficient,
                        "published": coefficient == published,
                        "length": length,
                        "factor": factor,
                        "positions": positions,
                        "multipliers": [rule(i + 1, length, factor, coefficient) for i in positions],
                    }
                )
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
