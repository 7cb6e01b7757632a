"""Who waits for whom where threads share a model, who is told so, and who need not wait."""

import _thread
import copy
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import family
from threads import IDS, LATE, LONG, SHORT, STATIC, Thread, both, compiled_in_place, forward, generation, paused
from torch import Tensor, nn

import ropescale
from ropescale.errors import BusyModelError
from ropescale.injection import alone


def traces(model: nn.Module) -> list[Any]:
    """Whatever somebody may have put on the modules of a model."""
    return [
        (name, list(vars(one)), list(one._forward_hooks), list(one._forward_pre_hooks))
        for name, one in model.named_modules()
    ]


REFUSAL = (
    "model: must be idle to be patched or unpatched, got a pass, a generation or a saving in thread 'reader' that has "
    "not ended in 0.2 seconds; wait until it has, and patch before the model serves"
)


@pytest.mark.parametrize("verb", ["patch", "unpatch", "patched"])
def test_a_pass_that_does_not_end_is_named_and_nothing_is_changed(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "PATIENCE", 0.2)
    model, (method, knobs) = family("llama"), LATE
    before, after = both(model, lambda: forward(model), method, knobs)
    if verb == "unpatch":
        ropescale.patch(model, method, **knobs)
    now = after if verb == "unpatch" else before

    def block() -> None:
        with ropescale.patched(model, method, **knobs):
            pytest.fail("the block must not be entered")

    verbs: dict[str, Callable[[], Any]] = {
        "patch": lambda: ropescale.patch(model, method, **knobs),
        "unpatch": lambda: ropescale.unpatch(model),
        "patched": block,
    }
    with paused(model, lambda: forward(model)) as (reader, pause):
        left = traces(model)
        with pytest.raises(BusyModelError) as caught:
            verbs[verb]()
        assert str(caught.value) == REFUSAL
        assert traces(model) == left
        assert (ropescale.record(model) is not None) is (verb == "unpatch")
        assert torch.equal(forward(model), now)
        pause.on.set()
        assert torch.equal(reader.answer(), now)
    if verb == "unpatch":
        ropescale.unpatch(model)
        assert torch.equal(forward(model), before)
    else:
        ropescale.patch(model, method, **knobs)
        assert torch.equal(forward(model), after)


def test_what_cannot_be_done_is_said_at_once() -> None:
    model = family("llama")
    with paused(model, lambda: forward(model)):
        began = time.monotonic()
        with pytest.raises(ropescale.errors.NotPatchedError):
            ropescale.unpatch(model)
        with pytest.raises(ropescale.errors.InvalidArgumentError):
            ropescale.patch(model, "yarn", factor=0.5)
        assert time.monotonic() - began < alone.PATIENCE / 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard also where the tests were started in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_pass_is_waited_for() -> None:
    model, (method, knobs) = family("llama"), LATE
    before, _ = both(model, lambda: forward(model), method, knobs)
    with paused(model, lambda: forward(model)) as (reader, pause):
        left = traces(model)
        threading.Timer(SHORT, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            ropescale.patch(model, method, **knobs)
        assert traces(model) == left
        pause.on.set()
        assert torch.equal(reader.answer(), before)
    ropescale.unpatch(ropescale.patch(model, method, **knobs))
    assert torch.equal(forward(model), before)


@pytest.mark.parametrize("method", [STATIC, LATE], ids=["static", "late"])
def test_nothing_of_it_stays_on_the_model(method: tuple[str, dict[str, Any]]) -> None:
    model = compiled_in_place(family("llama"))
    unpatched = traces(model)
    calls = [vars(one).get("_compiled_call_impl") for one in model.modules()]
    ropescale.patch(model, method[0], **method[1])
    assert [vars(one).get("_compiled_call_impl") for one in model.modules()] == calls
    assert "generate" not in vars(model)
    ropescale.unpatch(model)
    assert traces(model) == unpatched
    assert [vars(one).get("_compiled_call_impl") for one in model.modules()] == calls


def test_a_copy_that_is_made_meanwhile_is_a_model_of_its_own() -> None:
    model, (method, knobs) = family("llama"), STATIC
    with paused(model, lambda: forward(model)) as (_, pause):
        patching = Thread(lambda: ropescale.patch(model, method, **knobs))
        time.sleep(SHORT)  # it waits now
        twin = copy.deepcopy(model)
        pause.on.set()
        patching.answer()
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert not generation(twin).any()
    assert generation(model).any()


def test_a_hook_may_patch_the_model_that_runs_it() -> None:
    model, (method, knobs) = family("llama"), STATIC
    before, after = both(model, lambda: forward(model), method, knobs)

    def first(*_: Any) -> None:
        hook.remove()
        ropescale.patch(model, method, **knobs)

    hook = model.lm_head.register_forward_hook(first)
    assert torch.equal(forward(model), before)
    assert torch.equal(forward(model), after)


def test_a_thread_for_which_the_patch_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook within the proof waits for a thread that reads the model: one of the two must give up."""
    monkeypatch.setattr(alone, "STALLED", 0.2)
    model, (method, knobs) = family("llama"), LATE
    _, after = both(model, lambda: forward(model), method, knobs)
    owner, found = threading.get_ident(), []

    def passed(*_: Any) -> None:
        if threading.get_ident() == owner and not found:
            found.append(Thread(lambda: forward(model)).answer())

    hook = model.model.norm.register_forward_hook(passed)
    ropescale.patch(model, method, **knobs)
    hook.remove()
    assert isinstance(found[0], BusyModelError)
    assert str(found[0]) == (
        "model: must not be read by a thread for which ropescale.patch or unpatch of another thread waits, got a "
        "patch that has not gone on for 0.2 seconds; start such threads after it"
    )
    assert torch.equal(forward(model), after)


def test_a_thread_within_a_pass_may_ask_what_was_done_and_call_the_model_again() -> None:
    """None of it waits for a patch that waits for the pass."""
    model, (method, knobs) = family("llama"), LATE
    before, after = both(model, lambda: forward(model), method, knobs)
    with paused(model, lambda: forward(model)) as (reader, pause):
        inner: list[Any] = []
        owner = threading.get_ident()

        def again(*_: Any) -> None:
            if threading.get_ident() != owner and not inner:
                inner.append(ropescale.record(model))
                inner.append(forward(model))

        hook = model.model.norm.register_forward_hook(again)
        releasing = Thread(lambda: (time.sleep(SHORT), pause.on.set()))
        ropescale.patch(model, method, **knobs)
        hook.remove()
        releasing.answer()
        assert torch.equal(reader.answer(), before)
        assert inner[0] is None
        assert torch.equal(inner[1], before)
    assert torch.equal(forward(model), after)


def test_replicas_run_within_a_pass_in_threads_of_their_own() -> None:
    """As DataParallel makes them: copies of what modules hold, called in threads that the pass waits for."""
    model, (method, knobs) = family("llama"), STATIC
    before, _ = both(model, lambda: forward(model), method, knobs)
    head: Any = model.lm_head
    owner, found = threading.get_ident(), []

    def spread(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if threading.get_ident() != owner and not found:
            replica = head._replicate_for_data_parallel()
            replica._parameters, replica._forward_pre_hooks = dict(head._parameters), {}
            found.append(Thread(lambda: replica(given[0].detach())).answer())

    hook = head.register_forward_pre_hook(spread)
    with paused(model, lambda: forward(model)) as (reader, pause):
        releasing = Thread(lambda: (time.sleep(SHORT), pause.on.set()))
        ropescale.patch(model, method, **knobs)
        releasing.answer()
        assert torch.equal(reader.answer(), before)
    hook.remove()
    assert torch.equal(found[0], before)


def test_a_step_of_training_with_checkpoints_is_not_stuck() -> None:
    """What backward computes again goes through the same doors."""
    model, (method, knobs) = family("llama"), STATIC
    model.train()
    # the name since Transformers 5.23, and the one before
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    over, steps = threading.Event(), queue.Queue()  # type: ignore[var-annotated]

    def train() -> None:
        while not over.is_set():
            loss = model(input_ids=IDS[:, :32], labels=IDS[:, :32], use_cache=False).loss
            loss.backward()
            steps.put(loss.item())

    trainer = Thread(train)
    for _ in range(10):
        ropescale.patch(model, method, **knobs)
        steps.get(timeout=LONG)
        ropescale.unpatch(model)
        steps.get(timeout=LONG)
    over.set()
    assert trainer.answer() is None


def test_a_model_that_another_thread_reads_is_no_business_of_this_one() -> None:
    mine, other, (method, knobs) = family("llama"), family("llama"), LATE
    with paused(other, lambda: forward(other)):
        began = time.monotonic()
        ropescale.unpatch(ropescale.patch(mine, method, **knobs))
        assert time.monotonic() - began < alone.PATIENCE
