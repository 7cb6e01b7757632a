"""Messages in the language of the command line: an error of the library names its arguments as Python has them.

The one place where the two meet. A message stays what it is in Python (`existing="replace"`, `original_length: ...`);
the command line says it as its own options are written (`--existing replace`, `--original-length: ...`), and of an
option that the verb does not take, which verbs do. What is quoted is somebody's value, or code, and stays as it is.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# Words that are arguments where a value follows in quotes, as in: method 'yarn'
CHOICES = (
    "backend",
    "content",
    "dtype",
    "engine",
    "existing",
    "layers",
    "method",
    "objective",
    "schedule",
    "space",
    "tuning",
)
# Verbs, whose name may stand before the argument, as in: eval: factors must be ...
VERBS = ("demo", "eval", "recommend", "report", "search", "train")
# What only Python has, and what stands for it on the command line
IDIOMS = {
    "a registry name or a Method instance": "a registry name",
    "ropescale.list_methods()": "`ropescale methods`",
    "give it as a keyword, see": "give it in knobs=JSON, see",
    "an argument of ropescale.patch; give it there, beside the knobs": "an option of its own; give it beside --knobs",
    "ropescale.diagnose": "ropescale doctor",
}


@dataclass(frozen=True)
class Names:
    """How the arguments of one verb are written: `--factor`, or `SRC` for what has no dashes."""

    written: Mapping[str, str]
    flags: frozenset[str] = frozenset()  # those that take no value
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # options of other verbs, of which a message may speak
    takers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the verbs that take these

    def beside(self, other: "Names", verb: str) -> "Names":
        """These, and the options of another verb's parser as ones that are elsewhere."""
        options = {
            name: option
            for name, option in other.written.items()
            if option.startswith("-") and name not in self.written
        }
        takers = {name: (*self.takers.get(name, ()), verb) for name in options}
        flags = self.flags | (other.flags - set(self.written))
        return Names(self.written, flags, {**options, **self.elsewhere}, {**self.takers, **takers})


def names_of(parser: argparse.ArgumentParser) -> Names:
    """The arguments of a parser; `factor` where it takes `factors`, because a method has one."""
    written: dict[str, str] = {}
    others: dict[str, str] = {}
    flags: set[str] = set()
    for action in parser._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.nargs == argparse.PARSER or "help" in action.dest:
            continue
        if action.dest not in written:  # --packing comes before --no-packing
            written[action.dest] = _hyphened(long) if long else metavar
            flags |= {action.dest} if action.nargs == 0 else set()
        for option in sorted(long):  # of an option with a longer name too; --batch-size before --batch_size
            others.setdefault(option[2:].replace("-", "_"), option)
    for one, many in (("factor", "factors"), ("method", "methods"), ("length", "lengths")):
        if many in written and one not in written:
            written[one] = written[many]
    return Names({**others, **written}, frozenset(flags))


def _hyphened(options: list[str]) -> str:
    """The spelling that is shown of several: without underscores, and the first of these."""
    return next((option for option in options if "_" not in option), options[0])


class OneSpelling(argparse.RawDescriptionHelpFormatter):
    """Help that shows one spelling of each option, where several are understood."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if len(action.option_strings) < 2 or "--help" in action.option_strings:
            return super()._format_action_invocation(action)
        long = _hyphened([option for option in action.option_strings if option.startswith("--")])
        if action.nargs == 0:
            return long
        return f"{long} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class Defaults(OneSpelling):
    """The same, with the default of every option that has one and does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, argparse.SUPPRESS, []) or action.nargs == 0 or not action.option_strings
        if silent or not action.help or "(default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


def spelled(text: str, names: Names) -> str:
    """A message of the library, with its arguments as the command line writes them."""
    for python, here in IDIOMS.items():
        text = text.replace(python, here)
    every = {**names.elsewhere, **names.written}
    own, known = (
        "|".join(sorted(map(re.escape, some), key=len, reverse=True)) or "(?!)" for some in (names.written, every)
    )
    named: set[str] = set()
    pattern = re.compile(
        rf"""
          `[^`]*` | ropescale\.\w+\([^)]*\) | \w+\(\w+=[^)]*\)                  # code
        | (?<=must\ be\ one\ of\ ).+?(?=,\ got\ )                             # values to choose from
        | \A(?P<first>(?:{own})(?:,\ (?:{own}))*)(?=:)                      # argument: rule
        | \A(?P<owner>\w+:\ )(?P<owned>{own})(?=\ (?:must|is\ required|or)\b) # verb: argument rule
        | (?<![\w.'"-])(?P<assigned>{known})=(?:
            (?P<quote>["']?)(?P<value>[\w.+]*\w)(?P=quote) | \[["']?(?P<only>\w+)["']?\] | (?P<json>\{{"[^{{}}]*\}}))
        | (?<!\w)option\ '(?P<option>\w+)'
        | (?<![\w.'"-])(?<!unknown\ )(?P<chosen>{"|".join(CHOICES)})\ (?P<mark>["'])(?P<choice>\w+)(?P=mark)
        | (?<!\w)'(?:[^'\\]|\\.)*'(?!\w) | "(?:[^"\\]|\\.)*"                    # a value
        | (?<![\w.'"-])(?P<word>[a-z]+(?:_[a-z]+)+)(?![\w.('"=])
        """,
        re.VERBOSE,
    )

    def taken_by(name: str) -> str:
        """Which verbs take an option that this one does not, where it is named first."""
        takers = "" if name in names.written or name in named else f" (an option of {', '.join(names.takers[name])})"
        named.add(name)
        return takers

    def written(match: re.Match[str]) -> str:
        part = match.groupdict()
        if part["first"]:
            return ", ".join(names.written[name] for name in part["first"].split(", "))
        if part["owned"]:
            theirs = part["owner"][:-2] in VERBS or part["owned"] in ("factor", "target_length")
            return part["owner"] + (names.written[part["owned"]] if theirs else part["owned"])
        if part["assigned"]:
            name, value = part["assigned"], part["value"] or part["only"] or f"'{part['json']}'"
            return (every[name] if name in names.flags else f"{every[name]} {value}") + taken_by(name)
        if part["option"]:
            return names.written.get(part["option"], f"--{part['option'].replace('_', '-')}")
        if names.written.get(part["chosen"] or "", "").startswith("--"):
            return f"{names.written[part['chosen']]} {part['choice']}"
        word = part["word"] or ""
        return every[word] + taken_by(word) if word in every else match[0]

    said = pattern.sub(written, text)
    # a short word is an argument where it stands beside one
    return re.sub(r"(?<![\w-])(factor)\b(?= (?:or|nor) --)", lambda match: names.written.get(match[1], match[1]), said)
