"""The pieces of training in another loop than ours: what they give, and that the page and the examples run."""

import doctest
import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, Trainer, TrainingArguments

import ropescale
from ropescale import recipes
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.recipes import EvaluationCallback, MixedWindowCollator, PoseCollator, chunked_loss
from ropescale.recipes.loss import IGNORED

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S))
TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl: pip install trl")


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 1000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", recipes.__all__)
@pytest.mark.filterwarnings("ignore")
def test_an_example_gives_what_it_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = doctest.DocTestParser().get_doctest(getattr(recipes, name).__doc__, {}, name, None, 0)
    assert session.examples, f"{name} has no example"
    said: list[str] = []
    done = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(session, out=said.append)
    assert done.failed == 0, "".join(said)


def test_the_page_names_every_piece() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("\n\n## ")[0]
    assert set(re.findall(r"^\| (`.*?) \|", table, re.M)) >= {"`PoseCollator`", "`chunked_loss`"}
    assert all(f"`{name}`" in table for name in recipes.__all__)


@pytest.mark.parametrize(
    "name", ["Transformers' Trainer", "A loop of your own", pytest.param("TRL's SFTTrainer", marks=TRL)]
)
@pytest.mark.filterwarnings("ignore")
def test_the_page_runs_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer and smaller steps; what it writes loads again, patched."""
    monkeypatch.chdir(tmp_path)
    shorter = {r"max_steps=80": "max_steps=2", r"range\(80\)": "range(2)", r"batch_size=\d+": "batch_size=4"}
    text = BLOCKS[name]
    for pattern, instead in shorter.items():
        text = re.sub(pattern, instead, text)
    text = re.sub(r"EvaluationCallback\(trainer", "EvaluationCallback(trainer, windows=1, passkeys=1", text)
    assert text != BLOCKS[name]
    space: dict[str, Any] = {}
    exec(compile(text, str(PAGE), "exec"), space)
    if "trainer" in space:
        figures = [entry for entry in space["trainer"].state.log_history if "eval_passkey_512" in entry]
        assert [entry["step"] for entry in figures] == [2]
        assert set(figures[0]) >= {"eval_perplexity_128", "eval_perplexity_512", "eval_passkey_128"}
    if (tmp_path / "out" / "adapter").exists():
        assert ropescale.record(ropescale.load_adapter("tiny", tmp_path / "out" / "adapter")) is not None
    if (tmp_path / "out" / "extended").exists():
        assert ropescale.record(ropescale.load(tmp_path / "out" / "extended")) is not None


@pytest.mark.parametrize("chunks", [2, 3])
def test_positions_jump_and_the_mask_is_of_ones(chunks: int) -> None:
    rows = [{"input_ids": ids(40)}, {"input_ids": ids(25, 1), "labels": [IGNORED] * 20 + ids(25, 1)[20:]}]
    random.seed(3)
    batch = PoseCollator(target_length=160, chunks=chunks)(rows)
    assert set(batch) == {"input_ids", "position_ids", "labels", "attention_mask"}
    assert all(tensor.shape == (2, 40) for tensor in batch.values())
    assert bool((batch["attention_mask"] == 1).all())
    assert int((batch["position_ids"][0].diff() > 1).sum()) <= chunks - 1
    assert bool((batch["position_ids"][0].diff() >= 1).all())
    assert 0 <= int(batch["position_ids"].min()) <= int(batch["position_ids"].max()) < 160
    learnt = batch["labels"] != IGNORED
    assert learnt.sum(1).tolist() == [39, 5]  # nothing before it tells the first; what fills a row up is not learnt
    assert torch.equal(batch["labels"][learnt], batch["input_ids"][learnt])
    again = PoseCollator(target_length=160, chunks=chunks)(rows)
    assert not torch.equal(again["position_ids"], batch["position_ids"])
    random.seed(3)
    assert torch.equal(PoseCollator(target_length=160, chunks=chunks)(rows)["position_ids"], batch["position_ids"])


def test_every_distance_up_to_the_target_length_is_drawn() -> None:
    random.seed(0)
    collator = PoseCollator(target_length=64)
    seen: set[int] = set()
    for _ in range(400):
        places = collator([{"input_ids": ids(16)}])["position_ids"][0]
        seen |= set((places[:, None] - places[None]).flatten().tolist())
    assert seen >= set(range(64))


def test_text_between_chunks_is_skipped_in_rows_that_are_longer() -> None:
    random.seed(0)
    batch = PoseCollator(target_length=256, length=32)([{"input_ids": list(range(100, 228))}])
    text, places = batch["input_ids"][0], batch["position_ids"][0]
    assert len(text) == 32
    cuts = (text.diff() > 1).nonzero().flatten().tolist()
    assert len(cuts) == 1, "two chunks"
    assert set((places.diff() > 1).nonzero().flatten().tolist()) <= set(cuts)


def logits(model: Any, row: list[int], **given: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([row]), **given).logits
    return found[0]


def cost(model: Any, **given: Tensor) -> float:
    """Nats per learnt token."""
    with torch.no_grad():
        return float(model(**given).loss)


def test_a_later_chunk_sees_those_before_it() -> None:
    """Held against the model on the same positions with its cache, one token at a time: no mask to be misread."""
    model: Any = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    random.seed(1)
    batch = PoseCollator(target_length=512)([{"input_ids": ids(24)}])
    assert int(batch["position_ids"].diff().max()) > 1
    with torch.no_grad():
        together = model(**{name: batch[name] for name in batch if name != "labels"}).logits
        cache, last = None, None
        for place in range(24):
            given = {name: batch[name][:, place : place + 1] for name in ("input_ids", "position_ids")}
            done = model(**given, past_key_values=cache, use_cache=True)
            cache, last = done.past_key_values, done.logits
        places = {name: batch[name] for name in ("input_ids", "position_ids")}
        blind = model(**places, use_cache=False).logits
    assert (together[:, -1] - last[:, -1]).abs().max() < 1e-4
    assert (together - blind).abs().max() > 0.1, "without the mask Transformers still reads packed documents"


@pytest.mark.parametrize("loss", [True, False], ids=["chunked", "plain"])
def test_documents_of_a_row_are_read_as_in_rows_of_their_own(loss: bool) -> None:
    model: Any = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    first, second = ids(30), ids(50, 1)
    collator = MixedWindowCollator(model)
    batch = collator([{"input_ids": first + second, "seq_lengths": [30, 50]}])
    plain: Any = ropescale.load("tiny")  # both are shorter than the original length
    costs = [cost(plain, input_ids=torch.tensor([row]), labels=torch.tensor([row])) for row in (first, second)]
    expected = (costs[0] * 29 + costs[1] * 49) / 78
    if loss:
        with chunked_loss(model):
            assert cost(model, **batch) == pytest.approx(expected, abs=1e-5)
    assert cost(model, **batch) == pytest.approx(expected, abs=1e-5)
    # what a batch carried does not outlast it
    patched: Any = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    assert (logits(model, first + second) - logits(patched, first + second)).abs().max() < 1e-5
    assert (logits(model, first) - logits(plain, first)).abs().max() > 1e-3


def test_long_documents_of_mixed_windows_have_the_method() -> None:
    model: Any = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    patched: Any = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    row = ids(200)
    batch = MixedWindowCollator(model)([{"input_ids": row}])
    assert not batch["short"].any()
    expected = cost(patched, input_ids=torch.tensor([row]), labels=torch.tensor([row]))
    assert cost(model, **batch) == pytest.approx(expected, abs=1e-5)


def test_what_the_collators_refuse() -> None:
    model = ropescale.load("tiny")
    with pytest.raises(InvalidArgumentError, match=r"several documents needs a model .* give model=MODEL"):
        PoseCollator(target_length=64)([{"input_ids": ids(20), "seq_lengths": [10, 10]}])
    with pytest.raises(InvalidArgumentError, match=r"as long as the row in all \(20 tokens\), got 19"):
        PoseCollator(target_length=64, model=model)([{"input_ids": ids(20), "seq_lengths": [10, 9]}])
    with pytest.raises(InvalidArgumentError, match=r"at most the target length \(64\), got one of 65 tokens"):
        PoseCollator(target_length=64)([{"input_ids": ids(65)}])
    with pytest.raises(InvalidArgumentError, match=r"must have input_ids.*got \['text'\]"):
        PoseCollator(target_length=64)([{"text": "words"}])
    with pytest.raises(InvalidArgumentError, match=r"^length: must be below the target length \(64\), got 64"):
        PoseCollator(target_length=64, length=64)
    with pytest.raises(InvalidArgumentError, match=r"must be patched for mixed windows, got a LlamaForCausalLM"):
        MixedWindowCollator(model)


def test_what_the_callback_refuses(tmp_path: Path) -> None:
    model: Any = ropescale.load("tiny")
    arguments = TrainingArguments(str(tmp_path), report_to="none")
    with pytest.raises(InvalidArgumentError, match=r"^trainer: must have the tokenizer.*`processing_class=TOKENIZER`"):
        EvaluationCallback(Trainer(model, arguments), lengths=[128])
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
    with pytest.raises(InvalidArgumentError, match=r"^lengths: must be given for a model that is not patched"):
        EvaluationCallback(Trainer(model, arguments, processing_class=tokenizer))
    callback = EvaluationCallback(
        Trainer(model, arguments, processing_class=tokenizer), lengths=[128], windows=1, passkeys=1
    )
    assert set(callback.measured()) == {"eval_perplexity_128", "eval_passkey_128"}
