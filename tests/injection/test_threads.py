"""Other threads read a model while one patches it: each pass sees the model as it was before, or as it is after."""

import functools
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from families import family
from peft import LoraConfig, get_peft_model
from threads import LATE, SHORT, STATIC, Thread, both, compiled_in_place, forward, generation, paused
from torch import Tensor

import ropescale
from ropescale import patching
from ropescale.errors import RopescaleError, VerificationError
from ropescale.injection.alone import _Gate

# Softmax scales are changed layer by layer
SHARPENED = ("yarn", {"factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0})


def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that is planted: nobody waits for anybody."""
    monkeypatch.setattr(patching, "alone", lambda model: nullcontext(_Gate(model)))


CASES = {
    "late": ("llama", forward, LATE),
    "softmax scale": ("deepseek_v3", forward, SHARPENED),
    "static, generating": ("llama", generation, STATIC),
    "late, generating": ("llama", generation, LATE),
}


@pytest.mark.parametrize("planted", [False, True], ids=["", "planted"])
@pytest.mark.parametrize("verb", ["patch", "unpatch"])
@pytest.mark.parametrize("case", CASES)
def test_a_pass_that_has_begun_ends_as_it_began(
    case: str, verb: str, planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, reads, (method, knobs) = CASES[case]
    model = family(name)
    before, after = both(model, lambda: reads(model), method, knobs)
    if verb == "unpatch":
        ropescale.patch(model, method, **knobs)
    if planted:
        unlocked(monkeypatch)
    with paused(model, lambda: reads(model)) as (reader, pause):
        changed = threading.Event()

        def release() -> None:
            changed.wait(SHORT)
            pause.on.set()

        releasing = Thread(release)
        if verb == "patch":
            ropescale.patch(model, method, **knobs)
        else:
            ropescale.unpatch(model)
        changed.set()
        found = reader.answer()
        releasing.answer()
    whole = isinstance(found, Tensor) and torch.equal(found, before if verb == "patch" else after)
    assert whole is not planted


def plain(model: Any) -> Any:
    return model


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()


def decoder(model: Any) -> Any:
    return model.model


def without_hooks(model: Any) -> Any:
    return model.forward


def same(one: Any, other: Tensor) -> bool:
    """Whether a thread got these logits. What is compiled runs eagerly during a proof, and so rounds otherwise."""
    return isinstance(one, Tensor) and float((one - other).abs().max()) < 1e-5


DOORS = [plain, decoder, adapted, without_hooks]
COMPILED = [pytest.param(one, marks=pytest.mark.slow) for one in (compiled, compiled_in_place)]


@pytest.mark.parametrize("planted", [False, True], ids=["", "planted"])
@pytest.mark.parametrize("door", [*DOORS, *COMPILED])
def test_a_pass_that_would_begin_meanwhile_waits(
    door: Callable[[Any], Any], planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every pass of the proof another thread begins one of its own, and is given time for it."""
    model, (method, knobs) = family("llama"), LATE
    entered = door(model)
    _, after = both(model, lambda: forward(entered), method, knobs)
    begun: list[Thread] = []
    owner = threading.get_ident()

    @torch.compiler.disable
    def passed(*_: Any) -> None:
        if threading.get_ident() == owner and len(begun) < 6:
            begun.append(Thread(lambda: forward(entered)))
            time.sleep(0.05)

    if planted:
        unlocked(monkeypatch)
    hook = model.model.norm.register_forward_hook(passed)
    try:
        ropescale.patch(model, method, **knobs)
    except VerificationError:  # what others read was taken for what the proof reads
        assert planted
    hook.remove()
    found = [one.answer() for one in begun]
    assert (len(found) == 6 and all(same(one, after) for one in found)) is not planted


def strained(name: str, method: str, knobs: dict[str, Any], rounds: int) -> list[Any]:
    """Two threads read over and over while this one patches and undoes; what they read that is of neither model."""
    model = family(name)
    reads = [lambda: forward(model), lambda: generation(model)]
    known = [both(model, read, method, knobs) for read in reads]
    over, strange, interval = threading.Event(), [], sys.getswitchinterval()
    seen: list[list[int]] = [[0, 0], [0, 0]]

    def loop(number: int) -> None:
        while not over.is_set():
            try:
                found = reads[number]()
            except Exception as error:
                strange.append(error)
                continue
            kinds = [at for at, one in enumerate(known[number]) if torch.equal(found, one)]
            if kinds:
                seen[number][kinds[0]] += 1
            else:
                strange.append(found)

    sys.setswitchinterval(1e-5)
    threads = [Thread(functools.partial(loop, number)) for number in range(len(reads))]
    try:
        for _ in range(rounds):
            for verb in (lambda: ropescale.patch(model, method, **knobs), lambda: ropescale.unpatch(model)):
                try:
                    verb()
                except RopescaleError as error:
                    strange.append(error)
                time.sleep(0.002)
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.answer()
    assert strange or all(count for counts in seen for count in counts)  # both models were read, by both
    return strange


@pytest.mark.parametrize("method", [STATIC, LATE], ids=["static", "late"])
def test_threads_that_read_all_the_time(method: tuple[str, dict[str, Any]]) -> None:
    assert strained("llama", *method, rounds=20) == []


@pytest.mark.parametrize("method", [STATIC, LATE], ids=["static", "late"])
@pytest.mark.slow
def test_threads_that_read_through_hundreds_of_patches(method: tuple[str, dict[str, Any]]) -> None:
    assert strained("llama", *method, rounds=300) == []


@pytest.mark.parametrize("method", [STATIC, LATE], ids=["static", "late"])
def test_threads_that_do_not_wait_read_what_no_model_says(
    method: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlocked(monkeypatch)
    assert strained("llama", *method, rounds=20)
