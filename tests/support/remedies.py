"""What a message names as a remedy, and the verbs and options that there are."""

from __future__ import annotations

import argparse
import re
from functools import cache

from ropescale import cli
from ropescale.recipes import reading as recipe


@cache
def verbs() -> dict[str, argparse.ArgumentParser]:
    """Verb -> its parser; of `train` the one of a recipe, with all its options."""
    kinds = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {**kinds[0].choices, "train": recipe.parser("RECIPE")}


@cache
def options_of(verb: str) -> frozenset[str]:
    """Every spelling of every option of a verb."""
    own = {option for action in verbs()[verb]._actions for option in action.option_strings}
    kinds = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return frozenset(own | set(kinds[0].choices[verb]._option_string_actions))


def remedy(text: str) -> str:
    """The part of a message that says what to do; all of a piece that is no whole message."""
    return text.partition(", got ")[2].partition("; ")[2] if ", got " in text else text


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]*)`", text)
