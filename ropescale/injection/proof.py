"""What a patch does to a live model, seen in what its attention layers give back.

A few short passes of the model's own decoder: as it was, patched, and with the patch taken out. Attention is read and
then silenced (it hands zeros on), so that every layer is given the same hidden states each time, and a difference is
that layer's own. The last token of a pass stands farther from all others than the original length: what changes there
changed at distances beyond it. Nothing here knows how a patch is carried out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropescale.errors import VerificationError
from ropescale.injection.claim import TOKENS, Claim

PADDING = 5  # tokens on the left of the padded row
STEPS = 2  # tokens that are read over a cache: the second finds what the first has left there
# How far two answers may be apart that should be the same, relative to the largest element. Other shapes round
# otherwise, by a few 1e-7; a token in a wrong place moves an answer by 1e-2, and by 1e-3 where nothing was trained.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
COARSE = 5e-2  # in half precision
FAINT = (
    1e-6  # a change this small is rounding; the same shapes give the same bits, so in half precision anything shows
)
# A change of cos and sin, and so of scores, that must show
VISIBLE, COARSELY_VISIBLE = 1e-3, 5e-2

Answers = dict[nn.Module, Tensor]  # of each attention layer: [calls, batch, tokens, width] float32


class Proof:
    """A patch on its way: what the model gave before, with the patch, and after it was taken out.

    Raises:
        VerificationError: the decoder cannot read a short text, or what the patch claims is not what the model does.
    """

    def __init__(self, model: nn.Module, rotaries: list[nn.Module], model_type: str, last: int) -> None:
        """`last` is where the last token of a pass is to stand, beyond the original length."""
        self.watch = Watch(model, rotaries)
        self._model_type = model_type
        self.last = last

    def find_layers(self) -> None:
        """Finds the layers to be read, which takes a pass of its own."""
        with self._reading():
            self.watch.follow()

    def read_unpatched(self) -> None:
        """Reads the model as it is."""
        with self._reading():
            try:
                self.before = self.watch.apart(self.last)
            except (IndexError, RuntimeError):
                # a family that counts blocks of tokens by their positions: it is read where no position jumps
                self.last = TOKENS - 1
                self.before = self.watch.apart(self.last)
        for layer, answer in self.before.items():
            if not bool(answer.isfinite().all()):
                raise VerificationError(
                    f"{self._model_type}: the weights must give finite numbers, since a short text shows what a patch "
                    f"does, got NaN or infinity in layer {self.watch.number(layer)} of the unpatched one; restore them"
                )

    def read_near(self) -> None:
        """Reads the model as it is once more, its last token elsewhere: layers that answer otherwise rotate.

        Where a late method acts, the layers themselves say, so that this pass is saved.
        """
        with self._reading():
            self.near = self.watch.apart(TOKENS - 1 if self.last >= TOKENS else 0)

    def read_patched(self, claim: Claim) -> None:
        """Reads the patched model."""
        with self._reading(claim.method):
            self.patched = self.watch.apart(self.last)
            self._rows = self.watch.rows() if claim.late else None
        for layer, answer in self.patched.items():
            if not bool(answer.isfinite().all()):
                raise self._refused(claim, "give finite numbers", layer, float("inf"))

    def read_undone(self, claim: Claim) -> None:
        """Reads the model after the patch was taken out, and whatever of it has to excuse the patched one."""
        with self._reading():
            self.undone = self.watch.apart(self.last)
            self._own = self.watch.rows() if self._rows and self._astray(self._rows) else None

    def shown(self, claim: Claim, rotating: set[nn.Module] | None = None) -> dict[str, Any]:
        """What was seen of a claim, for the record.

        Args:
            claim: what the patch is to do.
            rotating: the layers in which the method acts; where they are not given, those whose answer depends on
                where the last token stands.
        """
        noise = {layer: gap(self.undone[layer], answer) for layer, answer in self.before.items()}
        seen = {layer: max(4 * noise[layer], self.watch.faint) for layer in noise}
        for layer in noise:
            if noise[layer] > self.watch.tolerance:
                raise self._refused(claim, "leave no trace when it is taken out", layer, noise[layer])
        changes = {layer: gap(self.patched[layer], answer) for layer, answer in self.before.items()}
        if rotating is None:
            rotating = {layer for layer in noise if gap(self.near[layer], self.before[layer]) > seen[layer]}
        # a layer may be given the rotations of several layer types, and choose for itself
        named = [layer for layer in noise if layer in rotating and self.watch.labels[layer] & claim.labels]
        changed = [layer for layer in named if changes[layer] > seen[layer]]
        if claim.change >= self.watch.visible:
            still = [layer for layer in named if layer not in changed and self.watch.labels[layer] <= claim.labels]
            if still or not changed:
                raise self._refused(claim, "change what attention reads far away", still[0] if still else None, 0.0)
        anything = claim.embeds or claim.windowed
        unnamed = [] if anything else [layer for layer in noise if layer not in named or claim.change == 0]
        for layer in unnamed:
            if changes[layer] > self.watch.tolerance:
                raise self._refused(claim, "leave alone what it does not name", layer, changes[layer])
        facts = ["change" if self.last >= TOKENS else "change nearby", "undo"]
        excused: list[str] = []
        for fact, layer, difference in self._astray(self._rows) if self._rows else ():
            if not any(fact == own for own, *_ in (self._astray(self._own) if self._own else ())):
                raise self._refused(claim, FACTS[fact], layer, difference)
            excused.append(fact)
        if self._rows:
            facts += [fact for fact in FACTS if fact not in excused]
        return {
            "how": LIVE,
            "shown": facts,
            "unlike by itself": sorted(set(excused)),  # what the unpatched model does not do either
            "layers": _ranges([self.watch.number(layer) for layer in changed]),
        }

    def _astray(self, rows: Rows) -> list[tuple[str, nn.Module, float]]:
        """Which facts about rows do not hold, in which layer, and by how much."""
        astray = []
        for layer, row in rows.row.items():
            length = rows.padded[layer].shape[2]
            pairs = {
                "padding": gap(rows.padded[layer], row[:, :, :length]),
                "cache": gap(rows.alone[layer][:, :, -STEPS:], row[:, :, -STEPS:]),
                "rows": gap(rows.alone[layer][:, :, :-STEPS], row[:, :, :-STEPS]),
            }
            astray += [(fact, layer, apart) for fact, apart in pairs.items() if not apart <= self.watch.tolerance]
        return astray

    @contextmanager
    def _reading(self, method: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a family's own code says
            patched = f" with {method}" if method else ""
            raise VerificationError(
                f"{self._model_type}: the decoder must read a short text{patched}, which shows what a patch does, got "
                f"{type(error).__name__}: {error}; this version cannot patch it, and the model was left as it was"
            ) from error

    def _refused(self, claim: Claim, needed: str, layer: nn.Module | None, difference: float) -> VerificationError:
        where = "none that does"
        if layer is not None:
            where = f"a difference of {difference:.2g} of the largest element in layer {self.watch.number(layer)}"
        return VerificationError(
            f"{claim.model_type}: {claim.method} must {needed}, got {where}; this version cannot patch it, and the "
            f"model was left as it was"
        )


LIVE = "on this model"  # how a patch was proven
FACTS = {
    "padding": "read a row that is padded on the left as it reads the row alone",
    "cache": "read a token over a cache as it reads it in one pass",
    "rows": "read a row among others as it reads it alone",
}


@dataclass(frozen=True)
class Rows:
    """One text read three ways."""

    row: Answers  # in a batch
    padded: Answers  # its beginning in the same batch, padded on the left; without the padding
    alone: Answers  # by itself, its last tokens over a cache, one after the other


class Watch:
    """The attention layers of a decoder, and what they give back in short passes."""

    def __init__(self, model: nn.Module, rotaries: list[nn.Module]) -> None:
        """The layers are found when they are first asked for, which takes one pass."""
        self.decoder = decoder_of(model, rotaries[0])
        embeddings: nn.Embedding = self.decoder.get_input_embeddings()  # type: ignore[operator]
        self._dtype = embeddings.weight.dtype
        self.device = embeddings.weight.device
        if self.device.type == "meta":  # offloaded: where it will be when it is needed
            self.device = next(rotaries[0].buffers()).device
        self._ids = torch.arange(1, TOKENS + 1, device=self.device).remainder(len(embeddings.weight))[None]
        self.labels: dict[nn.Module, set[str]] = {}  # layer -> the layer types whose rotation it is given
        self._rotaries = rotaries

    @property
    def tolerance(self) -> float:
        """How far two answers may be apart that should be the same, relative to the largest element."""
        return TOLERANCES.get(self._dtype, COARSE)

    @property
    def faint(self) -> float:
        """Up to where a difference of two passes of the same shape is none."""
        return FAINT if self._dtype in TOLERANCES else 0.0

    @property
    def visible(self) -> float:
        """A change of cos and sin that must show in the model's dtype."""
        return VISIBLE if self._dtype in TOLERANCES else COARSELY_VISIBLE

    def apart(self, last: int) -> Answers:
        """What the last of a few tokens reads, which stands at position `last` and all others at the beginning."""
        positions = torch.arange(TOKENS, device=self._ids.device)[None]
        positions[0, -1] = last
        answers = self._pass(input_ids=self._ids, position_ids=positions, attention_mask=torch.ones_like(self._ids))
        return {layer: answer[:, :, -1:] for layer, answer in answers.items()}

    def text(self, first: int, tokens: int, *, ending: int | None = None) -> Answers:
        """What every token of a short text reads that begins at position `first`; `ending` is another last token."""
        positions = torch.arange(first, first + tokens, device=self._ids.device)[None]
        ids = self._ids[:, :tokens].clone()
        if ending is not None:
            ids[:, -1] = ending
        return self._pass(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids))

    def rows(self) -> Rows:
        """A text in a batch with its own beginning, which is padded on the left, and the same text alone."""
        padding = torch.zeros_like(self._ids[:, :PADDING])
        ids = torch.cat((self._ids, torch.cat((padding, self._ids[:, :-PADDING]), dim=1)))
        mask = torch.ones_like(ids)
        mask[1, :PADDING] = 0
        answers = self._pass(input_ids=ids, attention_mask=mask)
        with _listening(self.layers) as heard, _quiet(self.decoder, self._ids.device):
            pieces: list[Answers] = []
            over: dict[str, Any] = {}
            for some in torch.split(self._ids, [TOKENS - STEPS, *[1] * STEPS], dim=1):
                output = self.decoder(input_ids=some, use_cache=True, **over)
                pieces.append(_gathered(heard))
                over = dict([_cache_of(self.decoder, output)])
        return Rows(
            row={layer: answer[:, :1] for layer, answer in answers.items()},
            padded={layer: answer[:, 1:, PADDING:] for layer, answer in answers.items()},
            alone={layer: torch.cat([piece[layer] for piece in pieces], dim=2) for layer in pieces[0]},
        )

    def number(self, layer: nn.Module) -> int:
        """Which layer of the model this is, from 0; its place among those that attend where it does not say."""
        stated = getattr(layer, "layer_idx", None)
        return stated if isinstance(stated, int) else self.layers.index(layer)

    @property
    def layers(self) -> list[nn.Module]:
        """The attention layers, in the order in which they read."""
        self.follow()
        return list(self.labels)

    def follow(self) -> None:
        """Find the layers, by one pass, unless they are known."""
        if not self.labels:
            with _followed(self.decoder, self._rotaries) as self.labels, _quiet(self.decoder, self._ids.device):
                self.decoder(input_ids=self._ids, attention_mask=torch.ones_like(self._ids), use_cache=False)

    def _pass(self, **inputs: Any) -> Answers:
        with _listening(self.layers) as heard, _quiet(self.decoder, self._ids.device):
            self.decoder(use_cache=False, **inputs)
        return _gathered(heard)


def decoder_of(model: nn.Module, rotary: nn.Module) -> nn.Module:
    """The smallest model within `model` that holds this rotary module: what reads ids, without a head."""
    holding: list[nn.Module] = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and any(inner is rotary for inner in module.modules())
    ]
    return min(holding, key=lambda module: sum(1 for _ in module.modules()))


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference of two answers, relative to the largest element; infinite where one is not finite."""
    most = float(other.abs().max())
    difference = float((one - other).abs().max())
    if difference == 0.0:
        return 0.0
    return difference / most if most > 0 and difference < float("inf") else float("inf")


def _ranges(numbers: list[int]) -> str:
    """Numbers in words: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


@contextmanager
def _quiet(decoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Without dropout, gradients, compilation or a coarser dtype than that of the weights for a while."""
    training = [part for part in decoder.modules() if part.training]
    decoder.eval()
    try:
        coarser = torch.autocast(device.type, enabled=False)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), coarser:
            yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _listening(layers: list[nn.Module]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """What these layers give back, in order; they hand zeros on meanwhile."""
    heard: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def silenced(layer: nn.Module, _: Any, answer: Any) -> Any:
        kept, rest = _split(answer)
        heard[layer].append(kept.detach().float())
        return rest

    hooks = [layer.register_forward_hook(silenced) for layer in layers]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _split(answer: Any) -> tuple[Tensor, Any]:
    """The tensor that a layer gives back, and what it gives back with zeros in its place."""
    if isinstance(answer, Tensor):
        return answer, torch.zeros_like(answer)
    return answer[0], (torch.zeros_like(answer[0]), *answer[1:])


def _gathered(heard: dict[nn.Module, list[Tensor]]) -> Answers:
    """What was heard since the last time; a layer may be called several times in one pass."""
    gathered = {layer: torch.stack(answers) for layer, answers in heard.items() if answers}
    for answers in heard.values():
        answers.clear()
    return gathered


def _cache_of(decoder: nn.Module, output: Any) -> tuple[str, Any]:
    """The cache in what a decoder gave back, and the keyword by which it takes one."""
    caches = [value for value in output.values() if hasattr(value, "get_seq_length")]
    parameters = inspect.signature(decoder.forward).parameters.values()
    names = [parameter.name for parameter in parameters if "Cache" in str(parameter.annotation)]
    if not caches or not names:
        raise LookupError("a decoder that gives back no cache, or takes none")
    return names[0], caches[0]


@contextmanager
def _followed(decoder: nn.Module, rotaries: list[nn.Module]) -> Iterator[dict[nn.Module, set[str]]]:
    """Which parts of layers are given what the rotary modules return, for which layer types, while the block runs.

    Nothing below such a part counts: attention may hold parts that rotate as well. A part that asks a rotary module of
    its own is given what that returns.
    """
    followed: dict[nn.Module, set[str]] = {}
    waves: list[tuple[Tensor, str]] = []
    running: list[nn.Module] = [decoder]
    blocks = _blocks(decoder)

    def take(module: nn.Module, above: list[nn.Module], labels: set[str]) -> None:
        if labels and module not in blocks and blocks.intersection(above) and not followed.keys() & set(above):
            followed.setdefault(module, set()).update(labels)

    def given(module: nn.Module, args: Any, kwargs: Any) -> None:
        labels = {label for wave, label in waves if any(tensor is wave for tensor in tensors_in((args, kwargs)))}
        take(module, running, labels)
        running.append(module)

    def returned(module: nn.Module, args: Any, kwargs: Any, answer: Any) -> Any:
        running.pop()
        if module in rotaries:
            label = next((argument for argument in (*args, *kwargs.values()) if isinstance(argument, str)), "")
            waves.extend((wave, label) for wave in tensors_in(answer))
            take(running[-1], running[:-1], {label})

    hooks = []
    for module in decoder.modules():
        if module is not decoder:
            hooks.append(module.register_forward_pre_hook(given, with_kwargs=True))
            hooks.append(module.register_forward_hook(returned, with_kwargs=True))
    try:
        yield followed
    finally:
        for hook in hooks:
            hook.remove()


def _blocks(decoder: nn.Module) -> set[nn.Module]:
    """The layers of a decoder, which hand cos and sin on to their attention."""
    blocks: set[nn.Module] = set()
    within: set[nn.Module] = set()
    for part in decoder.modules():  # from the outside to the inside
        if isinstance(part, nn.ModuleList) and part not in within:
            blocks.update(part)
            within.update(module for layer in part for module in layer.modules())
    return blocks


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and dicts."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for inner in nested:
            yield from tensors_in(inner)
    elif isinstance(nested, dict):
        yield from tensors_in(list(nested.values()))
