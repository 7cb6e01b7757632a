"""Write ropescale/injection/proven.json: of which decoder classes a patch was proven, with this Transformers.

    python scripts/proven.py

Patches a tiny model of every family, once with fixed frequencies and once with a late method; what the proof refuses
is not in the table. Other versions' entries stay as they are.
"""

import json
import sys
import warnings
from pathlib import Path

import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import families  # noqa: E402  # the tests' own models

import ropescale  # noqa: E402
from ropescale.errors import RopescaleError  # noqa: E402
from ropescale.injection.patch import patch_of  # noqa: E402
from ropescale.injection.proof import decoder_of  # noqa: E402

KINDS = {"static": {"method": "linear", "factor": 4}, "late": {"method": "self_extend"}}


def main() -> int:
    warnings.simplefilter("ignore")
    path = ROOT / "ropescale" / "injection" / "proven.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for name in families.NAMES:
        for kind, arguments in KINDS.items():
            model = families.family(name)
            try:
                ropescale.patch(model, **arguments)
            except RopescaleError as error:
                print(f"{name}, {kind}: {error}")
                continue
            standing = patch_of(model)
            assert standing is not None
            if not standing.record.proof["unlike by itself"]:
                found[kind].add(type(decoder_of(model, standing.rotary)).__name__)
    table[transformers.__version__] = {kind: sorted(names) for kind, names in found.items()}
    path.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
    print({kind: len(names) for kind, names in found.items()}, "with transformers", transformers.__version__)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
