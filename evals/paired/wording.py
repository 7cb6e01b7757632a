"""What is said of two folders: the heading, what is claimed, what is left out, and by which rules; plain text."""

from __future__ import annotations

from collections.abc import Iterable

from ropescale.evals.decision.comparison import FIND, READ
from ropescale.evals.paired.differences import BEYOND, SHORT, WITHIN, Claim, Differences
from ropescale.evals.paired.pairing import Arms, Pairing, unfinished
from ropescale.evals.report.wording import difference_text
from ropescale.evals.results import UNPATCHED, Arm, Results
from ropescale.pages.elements import shown

MOST = 3  # arms that a heading names
BETTER = {FIND: "finds more", READ: "reads text better"}
WORSE = {FIND: "finds less", READ: "reads text worse"}


def names(pairing: Pairing) -> tuple[str, str]:
    """What the two folders are called in a heading: A and B, with their names, or their paths where these agree."""
    paths = [results.folder for results in pairing.folders]
    alike = paths[0].resolve().name == paths[1].resolve().name
    one, other = (shown(path if alike else path.resolve().name, 60) for path in paths)
    return f"A ({one})", f"B ({other})"


def heading(made: Differences) -> str:
    """One sentence: where the second folder does better than the first, and where worse."""
    one, other = names(made.pairing)
    better, worse = _places(made, made.better), _places(made, made.worse)
    if better or worse:
        parts = [*([f"better than {one} {better}"] if better else [])]
        parts += [f"worse{'' if better else f' than {one}'} {worse}"] if worse else []
        return f"{other} does {', and '.join(parts)}."
    if opposed := _places(made, [claim for claim in made.claims if claim.gained.opposed]):
        return f"{other} is better than {one} by one measure and worse by another {opposed}."
    if not made.claims:
        return f"{other} and {one} were asked nothing in common that says how far a model reads or what it finds."
    if all(claim.alike for claim in made.claims):
        return f"{other} and {one} do alike."
    return f"{other} cannot be told from {one}."


def reasons(made: Differences) -> list[str]:
    """What is claimed, a sentence for each pair of arms and kind of prompts; and of what nothing is."""
    said = [_sentence(made, claim) for claim in made.claims if claim.told]
    rest = [claim for claim in made.claims if not claim.told]
    if len(rest) > 1:
        return [*said, f"B cannot be told from A {_places(made, rest)}."]
    return [*said, *untold(made)]


def untold(made: Differences) -> list[str]:
    """Of what nothing is claimed, each with its intervals."""
    return [_sentence(made, claim) for claim in made.claims if not claim.told]


def left_out(made: Differences) -> list[str]:
    """What is not compared, and why, in sentences."""
    pairing, said = made.pairing, []
    for letter, results, arms in zip("AB", pairing.folders, pairing.arms_alone, strict=True):
        if missing := unfinished(results):
            said.append(f"{letter} is not finished: {_arms(results, missing)}.")
        if arms:
            said.append(f"In {letter} alone, so not compared: {_arms(results, arms)}.")
    for letter, tasks in zip("AB", pairing.tasks_alone, strict=True):
        if tasks:
            said.append(f"Asked in {letter} alone: {', '.join(shown(name, 40) for name in tasks)}.")
    for task, why in pairing.apart.items():
        said.append(f"{shown(task, 40)} was asked otherwise in A and B, so it is not compared: {shown(why, 300)}.")
    lost = [sum(shared.alone[place] for shared in pairing.cells.values()) for place in (0, 1)]
    if any(lost):
        said.append(
            f"Prompts or windows that one folder alone has are left out of every figure: {lost[0]:,} of A and "
            f"{lost[1]:,} of B."
        )
    return said


def rules(made: Differences) -> list[str]:
    """How it was compared."""
    pairing = made.pairing
    said = []
    if made.claims:
        said.append(
            "Samples are compared one by one. The sentences above hold together with 95%: their intervals share the "
            "error among all arms, kinds of prompts and measures. Those of tables and pictures are of 95% each, by "
            "the bootstrap over samples. Less than 2% of perplexity counts as no difference."
        )
    if made.basis:
        said.append(
            f"What is found is the average over prompts of {', '.join(shown(t.name, 40) for t in made.basis)}."
        )
    if made.source is not None:
        said.append(f"How text is read is {shown(made.source.noun, 60)}; windows count as independent.")
    lengths = [results.settings.original_length for results in pairing.folders]
    if lengths[0] != lengths[1]:
        said.append(
            f"The original lengths are {lengths[0]:,} tokens in A and {lengths[1]:,} in B: within and beyond are told "
            f"at the smaller one."
        )
    if not pairing.digests:
        said.append(
            "These results are of a version that kept no digest of what was asked: samples are those of the same "
            "weights, seed and texts in the same window, or at the same depth with the same answer."
        )
    return said


def arms_text(pairing: Pairing, arms: Arms) -> str:
    """Two arms as a heading or a column names them: once where they have one name."""
    one, other = (arm_text(results, arm) for results, arm in zip(pairing.folders, arms, strict=True))
    return one if one == other else f"{one} in A, {other} in B"


def arm_text(results: Results, arm: Arm) -> str:
    """An arm as reports name it."""
    return shown(results.settings.base, 60) or "unpatched" if arm == UNPATCHED else shown(arm.label, 60)


def _arms(results: Results, arms: Iterable[Arm]) -> str:
    return ", ".join(arm_text(results, arm) for arm in arms)


def _sentence(made: Differences, claim: Claim) -> str:
    figures = "; ".join(difference_text(one) for one in claim.gained.known)
    counts = [f"{one.compared:,} {'prompts' if one.measure == FIND else 'windows'}" for one in claim.gained.known]
    where = f"{_with(made.pairing, claim.arms)}, {_about(made.pairing, claim)},"
    where = where[:1].upper() + where[1:]
    return f"{where} {_told(claim)}: {figures} ({', '.join(counts)})."


def _told(claim: Claim) -> str:
    if claim.about == SHORT and (claim.better_by or claim.worse_by):
        return f"B scores {'higher' if claim.better_by else 'lower'} than A"
    if claim.better_by:
        return f"B {BETTER[claim.better_by]} than A"
    if claim.worse_by:
        return f"B {WORSE[claim.worse_by]} than A"
    if claim.gained.opposed:
        found, read = (BETTER[FIND], WORSE[READ]) if claim.gained.signs[FIND] > 0 else (WORSE[FIND], BETTER[READ])
        return f"B {found} and {read} than A"
    if claim.alike:
        return "B does as A does, to within what makes a difference"
    return "B cannot be told from A"


def _about(pairing: Pairing, claim: Claim) -> str:
    if claim.task is not None:
        return f"in {shown(claim.task.name, 40)}"
    original = f"{pairing.original_length:,}"
    return f"within {original} tokens" if claim.about == WITHIN else f"beyond {original} and up to {claim.to:,} tokens"


def _with(pairing: Pairing, arms: Arms) -> str:
    """Two arms within a sentence."""
    one, other = (_model(results, arm) for results, arm in zip(pairing.folders, arms, strict=True))
    return f"with {one}" if one == other else f"with {one} in A and {other} in B"


def _model(results: Results, arm: Arm) -> str:
    if arm != UNPATCHED:
        return arm_text(results, arm)
    how, _, what = arm_text(results, arm).partition(": ")
    return f"the model {how} ({what})" if what else "the unpatched model"


def _places(made: Differences, claims: Iterable[Claim]) -> str:
    """Where claims are made: by kind of prompts, with the arms."""
    kinds: dict[str, list[str]] = {}
    for claim in claims:
        about = (
            _about(made.pairing, claim) if claim.about != BEYOND else f"beyond {made.pairing.original_length:,} tokens"
        )
        kinds.setdefault(about, []).append(_with(made.pairing, claim.arms).removeprefix("with "))
    said = []
    for about, arms in kinds.items():
        more = f" and {len(arms) - MOST} more" if len(arms) > MOST else ""
        said.append(f"{about} with {', '.join(arms[:MOST])}{more}")
    return "; ".join(said)
