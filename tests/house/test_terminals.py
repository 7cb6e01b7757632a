"""What files of somebody else hold is printed so that no terminal obeys it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks import VERBS, edit
from peft import LoraConfig, get_peft_model

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.errors import InvalidArgumentError
from ropescale.terminal import Clean


@pytest.fixture(autouse=True)
def adapter(request: pytest.FixtureRequest) -> None:
    """An adapter for `merge`, where a test has a folder of its own."""
    if "with_code" in request.fixturenames and "tmp_path" in request.fixturenames:
        model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_adapter(adapted, request.getfixturevalue("tmp_path") / "adapter")


# What a terminal obeys

ESCAPES = "\x1b[2J\x1b[H\x1b]0;owned\x07nothing found\x1b[8m\x9b2J\r\u202e\u2028"


def hostile(values: Any) -> Any:
    """Every text of a JSON value with escapes behind it, and entries with escapes in their names."""
    if isinstance(values, dict):
        return {**{name: hostile(value) for name, value in values.items()}, f"more{ESCAPES}": 1}
    if isinstance(values, list):
        return [hostile(value) for value in values]
    return f"{values}{ESCAPES}" if isinstance(values, str) else values


def is_obeyed(text: str) -> bool:
    return any(not (one.isprintable() or one == "\n") for one in text)


CONFIGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "every text": lambda config: config.update(hostile(config)),
    "the model type": lambda config: config.update(model_type=f"x{ESCAPES}"),
    "an entry of the rotation": lambda config: config["rope_parameters"].update({f"x{ESCAPES}": 1}),
    "the rope type": lambda config: config["rope_parameters"].update(rope_type=f"x{ESCAPES}"),
    "the class": lambda config: config.update(architectures=[f"x{ESCAPES}"]),
    "the activation": lambda config: config.update(hidden_act=f"x{ESCAPES}"),
    "the record": lambda config: config.update(ropescale={f"x{ESCAPES}": 1}),
    "another length": lambda config: config.update({"n_ctx": 10**6, "rope_theta_": ESCAPES}),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("verb", ["doctor", "inspect", "explain", "plot", "rescale", "export", "eval", "train"])
def test_no_escape_of_a_config_reaches_the_terminal(
    case: str, verb: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(theirs / "config.json", CONFIGS[case])
    (theirs / "model.safetensors").write_bytes(b"")  # so that nothing is loaded for long
    code = cli.main(VERBS[verb].format(theirs, tmp_path).split())
    said = capsys.readouterr()
    assert not is_obeyed(said.out + said.err)
    assert code in (0, 1, 2)
    assert code != 2 or said.err.splitlines()[-1].startswith("ropescale: ")


def test_an_error_is_one_line_of_bounded_length_for_python_too() -> None:
    error = InvalidArgumentError(f"a{ESCAPES}\n{'b' * 10**6}")
    assert not is_obeyed(str(error))
    assert "\n" not in str(error)
    assert len(str(error)) < 5000


def test_what_libraries_print_is_cleaned_and_a_bar_is_left() -> None:
    behind = io.StringIO()
    stream = Clean(behind)
    print(f"a{ESCAPES}", "b\tc", file=stream)
    stream.write("\r 50%|\x1b[2J")
    stream.write("\x1b[A")
    stream.writelines([f"\x1b[A{ESCAPES}"])
    shown = behind.getvalue()
    assert not is_obeyed(shown.replace("\tc", "").replace("\r 50%|\\x1b[2J\x1b[A", ""))
    assert "\r 50%|\\x1b[2J\x1b[A" in shown


def test_a_table_on_a_terminal_keeps_its_colours_and_no_others() -> None:
    from rich.table import Table

    from ropescale.console import Console

    behind = io.StringIO()
    table = Table("a", title=f"[bold]{ESCAPES}")
    table.add_row(f"[red]{ESCAPES}")
    console = Console(file=Clean(behind), force_terminal=True, color_system="standard", width=200)
    console.print(table, f"a{ESCAPES}")
    shown = behind.getvalue()
    assert "\x1b[31m" in shown
    assert not any(sign in shown for sign in ("\x1b[2J", "\x1b]", "\x1b[8m", "\x07", "\x9b", "\r", "\u202e"))
