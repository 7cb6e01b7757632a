"""Files of somebody else that count more than they hold, expand without end or are no files end in a sentence."""

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import READING, VERBS, edit
from peft import LoraConfig, get_peft_model

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError
from ropescale.export.gguf.header import require_sound
from ropescale.files import read_json, read_text
from ropescale.recipes.reading import read_yaml


@pytest.fixture(autouse=True)
def adapter(request: pytest.FixtureRequest) -> None:
    """An adapter for `merge`, where a test has a folder of its own."""
    if "with_code" in request.fixturenames and "tmp_path" in request.fixturenames:
        model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_adapter(adapted, request.getfixturevalue("tmp_path") / "adapter")


# Bombs


def test_a_recipe_has_no_anchors(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(InvalidArgumentError, match="aliases are not read here"):
        read_yaml(str(tmp_path / "r.yaml"))


RECIPES = {
    "brackets": b"a: " + b"[" * 20000,
    "no calendar": b"a: 2001-99-99",
    "no text": b"method: \xe9\n",
    "digits": b"a: " + b"9" * 9999,
    "a long one": b"# " + b"x" * 2**21,
    "code": b"a: !!python/object/apply:os.system ['true']",
    "no key": b"? [a, b]\n: c",
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_damaged_recipe_is_worded(case: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(RECIPES[case])
    with pytest.raises(RopescaleError, match=r"r\.yaml"):
        read_yaml(str(tmp_path / "r.yaml"))


def gguf_file(*parts: Any) -> bytes:
    """Magic, version 3, and what follows: a number of 8 bytes, or bytes."""
    return (
        b"GGUF"
        + struct.pack("<I", 3)
        + b"".join(one if isinstance(one, bytes) else struct.pack("<Q", one) for one in parts)
    )


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


GGUFS = {
    "nothing": b"",
    "another format": b"GGML" + bytes(100),
    "the beginning alone": b"GGUF",
    "entries without end": gguf_file(0, 2**60),
    "tensors without end": gguf_file(2**63, 0),
    "an array without end": gguf_file(0, 1, 1, b"a", u32(9), u32(4), 2**60),
    "an array of texts without end": gguf_file(0, 1, 1, b"a", u32(9), u32(8), 2**40),
    "an array of many bytes": gguf_file(0, 1, 1, b"a", u32(9), u32(0), 2**22, bytes(2**22)),
    "arrays within arrays": gguf_file(0, 1, 1, b"a", u32(9), u32(9), 1, u32(9), 1, bytes(99)),
    "a text without end": gguf_file(0, 1, 1, b"a", u32(8), 2**62),
    "a name without end": gguf_file(0, 1, 2**63, b"a"),
    "a type that nobody knows": gguf_file(0, 1, 1, b"a", u32(77), bytes(99)),
    "dimensions without end": gguf_file(1, 0, 1, b"a", u32(2**31), bytes(99)),
}


@pytest.mark.parametrize("case", GGUFS)
def test_a_header_that_counts_more_than_there_is_is_refused(case: str, tmp_path: Path) -> None:
    from ropescale.export.gguf import reading

    (tmp_path / "a.gguf").write_bytes(GGUFS[case])
    with pytest.raises(CheckpointError, match=r"a\.gguf: [a-z ]*must "):
        reading.reader_of(tmp_path / "a.gguf")


def test_a_sound_header_is_passed(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(
        gguf_file(1, 2, 1, b"a", u32(9), u32(8), 2, 1, b"x", 0, 1, b"b", u32(7), b"\1", 1, b"t", u32(1), 4, u32(0), 0)
    )
    require_sound(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="must hold all that its header counts"):
        require_sound(tmp_path / "a.gguf")


PIPES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "zeros without end": lambda file: file.symlink_to("/dev/zero"),
    "brackets within brackets": lambda file: file.write_text('{"a":' * 500 + "1" + "}" * 500),
    "brackets without end": lambda file: file.write_text("[" * 10**5),
    "a large one": lambda file: (file.touch(), os.truncate(file, 2**40)),
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("case", PIPES)
def test_what_is_no_ordinary_file_is_not_waited_for(case: str, name: str, theirs: Path, tmp_path: Path) -> None:
    (theirs / name).unlink()
    PIPES[case](theirs / name)
    with pytest.raises(CheckpointError, match=rf"{name}: must "):
        read_json(theirs / name)
    assert cli.main(VERBS["eval"].format(theirs, tmp_path).split()) == 2


def test_a_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é\r\n")
    assert read_text(tmp_path / "a") == "é\n"
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "b")


# Damage


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:9999])


def pickled(folder: Path) -> None:
    class Mark:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {folder}/ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Mark()}, folder / "pytorch_model.bin")


def entry(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights that were cut": cut,
    "weights that are gone": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of nothing": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights that are text": lambda folder: (folder / "model.safetensors").write_text("hello"),
    "another shape": entry(intermediate_size=100),
    "code in a pickle": pickled,
    "a class that is a number": lambda folder: edit(
        folder / "config.json", lambda config: config.update(architectures=5)
    ),
    "an unknown activation": lambda folder: edit(folder / "config.json", lambda config: config.update(hidden_act="x")),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_is_worded_at_the_reader(case: str, theirs: Path) -> None:
    DAMAGE[case](theirs)
    with pytest.raises(RopescaleError) as refusal:
        ropescale.load(theirs)
    assert str(theirs) in str(refusal.value) or "architectures" in str(refusal.value)
    assert "; " in str(refusal.value)
    assert not (theirs / "ran").exists()
    for verb in ("doctor", "rescale", "export"):  # which need not look at all of it
        with suppress(RopescaleError):
            READING[verb](theirs, theirs.with_name(f"out-{verb}"))
