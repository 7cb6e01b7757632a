"""Count which causal language models of the installed Transformers are patched, and write docs/families.md.

    python scripts/census.py            # try every family, and write the page
    python scripts/census.py --check    # try every family, and say whether the page is what it would write

Every patched class is built as a tiny random model, patched with four methods, compared with a model that
Transformers builds from the same config, and undone. Late methods are tried with two: one that maps distances, one
that scales.
"""

import argparse
import copy
import inspect
import re
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import ropescale
from ropescale.families.catalogue import CATALOGUE, family_of
from ropescale.families.parts import text_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
METHODS = ("yarn", "ntk", "linear", "by_parts")
LATE = ("rerope", "dynamic_ntk")
WITHIN = sorted(row.model_type for row in CATALOGUE.values() if not row.alone)
UNBUILT = {"Gemma3nForConditionalGeneration": "its vision tower needs the package timm"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One causal language model class."""

    name: str
    family: str  # the model_type of its text
    rotary: bool  # a rotary module of its own
    status: str  # patched, refused, untried, or none where nothing rotates
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What patching a tiny model of a class gave."""

    difference: float  # of logits, from a native model; the largest of the methods
    change: float  # of logits, by the patch; the smallest
    undone: bool  # bit for bit
    late: str  # empty where late methods work, else why not


def rows() -> list[Row]:
    """Every class of AutoModelForCausalLM, by name; builds nothing."""
    types: dict[str, list[str]] = {}
    for model_type, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in names if isinstance(names, (tuple, list)) else [names]:
            types.setdefault(name, []).append(model_type)
    return [_row(name, model_types) for name, model_types in sorted(types.items())]


def beside_vision() -> list[Row]:
    """The class of every text decoder that is patched and has none without the vision beside it."""
    wholes = {family: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family.removesuffix("_text")] for family in WITHIN}
    return [Row(name=wholes[one], family=one, rotary=True, status="patched") for one in WITHIN]


def _row(name: str, model_types: list[str]) -> Row:
    module = import_module(getattr(transformers, name).__module__)
    classes = re.findall(r"^class (\w*Rotary\w*)\(", inspect.getsource(module), flags=re.MULTILINE)
    rotary = any(not re.search("Vision|Audio", one) for one in classes)
    texts = [*model_types, *(_text_type(one) for one in model_types)]
    family = next((one for one in texts if one in CATALOGUE), model_types[0])
    if name in UNBUILT:
        return Row(name=name, family=family, rotary=rotary, status="untried", reason=UNBUILT[name])
    if family not in CATALOGUE:
        return Row(name=name, family=family, rotary=rotary, status="none")
    reason = family_of(family).refused
    return Row(name=name, family=family, rotary=rotary, status="refused" if reason else "patched", reason=reason)


def _text_type(model_type: str) -> str:
    """The model_type of the text within a config of this type."""
    inner = CONFIG_MAPPING[model_type].sub_configs.get("text_config")
    return getattr(inner, "model_type", "")


def tried(row: Row) -> Trial:
    """Patch a tiny model of a patched class, compare, and take the patch out again."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))  # where the tiny configs of every family are
    from families import WHOLES, config_of, config_of_whole, logits, model_of, model_of_whole

    whole = row.name.endswith("ForConditionalGeneration")
    kind = next((one for one in WHOLES if WHOLES[one][0] == row.family), "") if whole else row.family
    build, config = (model_of_whole, config_of_whole(kind)) if whole else (model_of, config_of(kind))
    model = build(config)
    assert type(model).__name__ == row.name, type(model).__name__
    before, stated = logits(model), model.config.to_dict()
    differences, changes, undone = [], [], True
    for method in METHODS:
        with ropescale.patched(model, method, factor=4):
            native = copy.deepcopy(model.config)
            del text_of(native).ropescale
            after = logits(model)
            differences.append(float((logits(build(native)) - after).abs().max()))
            changes.append(float((after - before).abs().max()))
        undone = undone and torch.equal(logits(model), before) and model.config.to_dict() == stated
    late = ""
    for method in LATE:
        try:
            with ropescale.patched(model, method, factor=4):
                logits(model)
        except ropescale.RopescaleError as error:
            late = re.sub(r"^[\w-]+: (\w+ (?=needs))?", "", str(error)).split(";")[0]
            break
    return Trial(difference=max(differences), change=min(changes), undone=undone, late=late)


def _line(row: Row, trial: Trial) -> str:
    equal = "bit for bit native" if trial.difference == 0 else "native within 1e-6"
    return f"| {row.name} | {row.family} | {equal} | {f'no: {trial.late}' if trial.late else 'yes'} |"


def page(found: list[Row], wholes: list[Row], trials: dict[str, Trial]) -> str:
    """The page, from the rows and the trials of those that are patched."""
    rotating = [row for row in found if row.rotary]
    patched = [row for row in rotating if row.status == "patched"]
    late = [row for row in patched if not trials[row.name].late]
    exact = [row for row in patched if trials[row.name].difference == 0]
    version = transformers.__version__
    lines = [
        "# Families",
        "",
        f"Every class that `AutoModelForCausalLM` of Transformers {version} knows, written by `scripts/census.py`: it "
        f"builds a tiny random model of each, patches it with {', '.join(f'`{one}`' for one in METHODS)} at factor 4, "
        f"compares its logits with those of a model that Transformers builds from the same config, and takes the "
        f"patch out again. Text decoders of vision-language models are patched in place; their vision rotaries stay.",
        "",
        f"- classes with a rotary embedding: {len(rotating)}",
        f"- patched: {len(patched)}, every one undone bit for bit and none without effect; logits equal to native "
        f"within 1e-6 for all, bit for bit for {len(exact)}",
        f"- of these, methods that act when attention reads work on {len(late)}",
        f"- refused by name: {sum(row.status == 'refused' for row in rotating)}; not tried here: "
        f"{sum(row.status == 'untried' for row in rotating)}",
        "",
        "| class | family | fixed frequencies | methods that act in attention |",
        "|---|---|---|---|",
    ]
    for row in rotating:
        if row.status == "patched":
            lines.append(_line(row, trials[row.name]))
        else:
            word = "refused" if row.status == "refused" else "not tried"
            lines.append(f"| {row.name} | {row.family} | {word}: {row.reason} | no |")
    lines += [
        "",
        "Text decoders that Transformers has within a vision-language model alone, tried in the same way, on text; "
        "with images they are compared in the tests:",
        "",
        *("| class | family | fixed frequencies | methods that act in attention |", "|---|---|---|---|"),
        *(_line(row, trials[row.name]) for row in wholes),
    ]
    tables = [row for row in found if not row.rotary and row.status == "refused"]
    others = [row.name for row in found if row.status == "none"]
    lines += ["", "Rotation without a rotary module:", ""]
    lines += [f"- {row.name}, refused: {row.reason}" for row in tables]
    lines += ["", "Without a rotary embedding of their own, and refused by name: " + ", ".join(others) + ".", ""]
    return "\n".join(lines)


def main() -> int:
    """Try everything; write the page or compare with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/families.md, and write nothing")
    check = parser.parse_args().check
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found, wholes = rows(), beside_vision()
    trials = {}
    for row in [*found, *wholes]:
        if row.status == "patched" and row.rotary:
            trials[row.name] = trial = tried(row)
            print(f"{row.name}: difference {trial.difference:.2g}, change {trial.change:.2g}, {trial.late or 'late'}")
            assert trial.undone, row.name
            assert trial.difference <= 1e-6, row.name
            assert trial.change > 1e-3, row.name
    text = page(found, wholes, trials)
    if check:
        stale = PAGE.read_text(encoding="utf-8") != text
        print("stale: run python scripts/census.py" if stale else "docs/families.md is what it should be")
        return int(stale)
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
