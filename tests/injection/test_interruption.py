"""patch, unpatch and patched, interrupted at every line that they execute: the model is as before or as after."""

import copy
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from families import family, fingerprint, logits
from torch import nn

import ropescale
from ropescale.injection import alone

PACKAGE = str(Path(ropescale.__file__).parent)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "static": ("llama", "yarn", {"factor": 4}),
    "of one layer type": ("gemma3_text", "ntk", {"factor": 4}),
    "with a softmax scale": ("deepseek_v3", "yarn", {"factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0}),
    "late": ("llama", "self_extend", {"group_size": 4, "window": 16}),
    "late with parameters": ("llama", "t5", {}),
}


class Strike(BaseException):
    """What strikes: like Ctrl-C, no Exception."""


Line = tuple[str, int]


def struck(work: Callable[[], object], at: Line | None) -> list[Line]:
    """The lines of the package that `work` executes, in order; with `at`, struck before that line runs."""
    lines: dict[Line, None] = {}

    def local(frame: FrameType, event: str, _: object) -> Any:
        line = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            lines.setdefault(line)
            if line == at:
                sys.settrace(None)
                raise Strike
        return local

    def entered(frame: FrameType, _: str, __: object) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    sys.settrace(entered)
    try:
        work()
    except Strike:
        assert at is not None
    finally:
        sys.settrace(None)
    return list(lines)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that somebody could see."""
    config: Any = model.config
    return {
        "logits": logits(model, 80).tolist(),
        "config": copy.deepcopy(config.to_dict()),
        "attention": config._attn_implementation,
        "generation": model.generation_config.to_dict(),  # type: ignore[union-attr]
        "parameters": fingerprint(model),
        "buffers": {name: one.tolist() for name, one in model.named_buffers()},
        "hooks": [
            (name, len(one._forward_hooks), len(one._forward_pre_hooks), one.training, sorted(vars(one)))
            for name, one in model.named_modules()
        ],
        "patched": ropescale.record(model),
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("verb", ["patch", "unpatch", "patched"])
@pytest.mark.slow
def test_struck_at_every_line(case: str, verb: str) -> None:
    """The whole of it: minutes."""
    strike_at_lines(case, verb, every=1)


@pytest.mark.parametrize("case", ["static", "late"])
@pytest.mark.parametrize("verb", ["patch", "unpatch", "patched"])
def test_struck_at_many_lines(case: str, verb: str) -> None:
    strike_at_lines(case, verb, every=19)


@pytest.mark.parametrize("verb", ["patch", "unpatch", "patched"])
def test_struck_at_every_line_at_which_others_are_kept_out(verb: str) -> None:
    strike_at_lines("static", verb, every=1, within="alone.py")


def strike_at_lines(case: str, verb: str, every: int, within: str = "") -> None:
    name, method, arguments = CASES[case]
    model = family(name)
    model.generation_config.max_length = 64  # which a patch raises
    plain = state(model)
    patched = state(ropescale.patch(model, method, **arguments))
    if verb != "unpatch":
        ropescale.unpatch(model)
    assert patched["logits"] != plain["logits"]

    def work() -> None:
        if verb == "patch":
            ropescale.patch(model, method, **arguments)
        elif verb == "unpatch":
            ropescale.unpatch(model)
        else:
            with ropescale.patched(model, method, **arguments):
                pass

    begun = patched if verb == "unpatch" else plain
    lines = struck(work, None)
    assert len(lines) > 40
    seen = set()
    for line in [*[one for one in lines if one[0].endswith(within)][::every], lines[-1]]:
        now = ropescale.record(model) is not None
        if now and begun is plain:
            ropescale.unpatch(model)
        elif not now and begun is patched:
            ropescale.patch(model, method, **arguments)
        struck(work, line)
        after = state(model)
        assert after in (plain, patched), line
        seen.add(after == begun)
        assert others_may_go_on(), line
    assert True in seen  # some strikes came before the end
    if ropescale.record(model) is None:
        ropescale.patch(model, method, **arguments)
    assert state(model) == patched
    ropescale.unpatch(model)
    assert state(model) == plain


def others_may_go_on() -> bool:
    """Whether no lock was left behind, in which every other thread would wait for ever."""
    took: list[bool] = []

    def other() -> None:
        for lock in (alone._TURN, alone._CHANGING):
            took.append(lock.acquire(timeout=1))
            if took[-1]:
                lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    return all(took)


def test_the_lines_of_the_proof_are_among_those_struck() -> None:
    """A patch that proved nothing would pass everything here with fewer lines."""
    model = family("llama")
    files = {Path(file).name for file, _ in struck(lambda: ropescale.patch(model, "self_extend"), None)}
    assert {"patching.py", "alone.py", "proof.py", "snapshot.py", "probe.py", "late.py", "rotation.py"} <= files


def test_two_threads_leave_a_model_that_is_whole() -> None:
    model = family("llama")
    plain, interval = state(model), sys.getswitchinterval()
    problems: list[BaseException] = []

    def work() -> None:
        for _ in range(12):
            for verb in (lambda: ropescale.patch(model, "yarn", factor=4), lambda: ropescale.unpatch(model)):
                try:
                    verb()
                except (ropescale.errors.AlreadyPatchedError, ropescale.errors.NotPatchedError):
                    continue  # the other thread was first
                except BaseException as error:
                    problems.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not problems
    if ropescale.record(model) is not None:
        ropescale.unpatch(model)
    assert state(model) == plain


def test_warnings_as_errors_leave_the_model_unpatched() -> None:
    model = family("gemma2")
    plain = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            pytest.raises(UserWarning, match="rotary module serves"),
            ropescale.patched(model, "yarn", factor=2),
        ):
            pytest.fail("the block must not be entered")
    assert state(model) == plain


def test_out_of_memory_in_the_middle_of_a_substitution(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    plain, whole, calls = state(model), torch.Tensor.to, []

    def to(tensor: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if keywords.get("copy"):
            calls.append(tensor)
            if len(calls) == 2:
                raise torch.cuda.OutOfMemoryError("no room")
        return whole(tensor, *arguments, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ropescale.patch(model, "yarn", factor=4)
    monkeypatch.undo()
    assert len(calls) == 2
    assert state(model) == plain
    ropescale.unpatch(ropescale.patch(model, "yarn", factor=4))
    assert state(model) == plain
