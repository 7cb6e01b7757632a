"""Other threads read a model while one patches it: each pass sees the model as it was before, or as it is after."""

import _thread
import copy
import functools
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from families import family
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import ropescale
from ropescale import patching
from ropescale.errors import BusyModelError, RopescaleError, VerificationError
from ropescale.injection import alone

STATIC = ("yarn", {"factor": 4})
LATE = ("self_extend", {"group_size": 4, "window": 16})
# Softmax scales are changed layer by layer
SHARPENED = ("yarn", {"factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0})
IDS = torch.arange(3, 103)[None]
LONG = 60.0  # seconds after which a test is stuck
SHORT = 0.3  # seconds that another thread is given to do what it must not do


@torch.no_grad()
def forward(model: Any) -> Tensor:
    output = model(IDS)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def generation(model: Any) -> Tensor:
    """The logits of every step."""
    asked = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_logits": True}
    found = model.generate(IDS[:, :70], return_dict_in_generate=True, **asked)
    return torch.stack(found.logits)


def both(model: nn.Module, read: Callable[[], Tensor], method: str, knobs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What is read of an unpatched model, and of the patched one."""
    before = read()
    with ropescale.patched(model, method, **knobs):
        after = read()
    assert not torch.equal(before, after)
    return before, after


def traces(model: nn.Module) -> list[Any]:
    """Whatever somebody may have put on the modules of a model."""
    return [
        (name, list(vars(one)), list(one._forward_hooks), list(one._forward_pre_hooks))
        for name, one in model.named_modules()
    ]


class Thread:
    """Work in another thread, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(work,), name="reader", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        torch.set_num_threads(1)
        try:
            self._found.append(work())
        except BaseException as error:
            self._found.append(error)

    def answer(self) -> Any:
        self._thread.join(LONG)
        assert not self._thread.is_alive(), "stuck"
        return self._found[0]


class Pause:
    """A hook that stops the first pass of another thread in the middle of the model."""

    def __init__(self, module: nn.Module) -> None:
        self.reached, self.on = threading.Event(), threading.Event()
        self._owner = threading.get_ident()
        self._hook = module.register_forward_hook(self._stop)

    def __deepcopy__(self, _: Any) -> "Pause":
        return self

    @torch.compiler.disable
    def _stop(self, *_: Any) -> None:
        if threading.get_ident() != self._owner and not self.reached.is_set():
            self.reached.set()
            assert self.on.wait(LONG)


@contextmanager
def paused(model: nn.Module, read: Callable[[], Tensor]) -> Iterator[tuple[Thread, Pause]]:
    """A pass of another thread that has read the first of two layers."""
    pause = Pause(model.get_submodule("model.layers.0"))
    reader = Thread(read)
    assert pause.reached.wait(LONG)
    try:
        yield reader, pause
    finally:
        pause.on.set()
        reader.answer()
        pause._hook.remove()


def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that is planted: nobody waits for anybody."""
    monkeypatch.setattr(patching, "alone", lambda model: nullcontext())


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


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


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
