"""Adapters that PEFT alone has saved: arms of an evaluation, merged, trained on; against PEFT and Transformers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from evaluations import lines
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ropescale
from ropescale.adapters import merge
from ropescale.checkpoints import resolve
from ropescale.cli import main
from ropescale.doctor.adapter import BESIDE
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals import grid
from ropescale.evals.bench import Bench
from ropescale.evals.plan import Options
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.wording import command_text
from ropescale.evals.results import UNPATCHED, Arm, read
from ropescale.evals.tasks.windows import windows
from ropescale.evals.texts import sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

TINY = resolve("tiny")
PROMPTED = peft.PromptLearningConfig
COMMON: dict[str, Any] = {"task_type": "CAUSAL_LM"}
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], **COMMON}
NATIVE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
KINDS: dict[str, Any] = {
    "my-lora": LoraConfig(**LORA),
    "whole": LoraConfig(**LORA, modules_to_save=["norm", "embed_tokens"]),
    "written-over": LoraConfig(**LORA, init_lora_weights="olora"),
    "vocabulary": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
}
REFUSED: dict[str, Any] = {
    "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=4, **COMMON),
    "ADAPTION_PROMPT": peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, **COMMON),
    "LORA": LoraConfig(**LORA, alora_invocation_tokens=[3, 4]),  # acts behind these tokens alone
}


def base(**config: Any) -> Any:
    """The embedded model as Transformers alone loads it."""
    made = AutoConfig.from_pretrained(TINY)
    if config:
        made.rope_parameters = {"rope_theta": made.rope_parameters["rope_theta"], **config}
        made.max_position_embeddings = 512
    return AutoModelForCausalLM.from_pretrained(TINY, config=made)


def saved(folder: Path, config: peft.PeftConfig, *, rows: int = 0) -> Path:
    """An adapter with random weights, as PEFT saves it."""
    model = base()
    torch.manual_seed(0)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for one in wrapped.parameters():
            if one.requires_grad:
                one.add_(torch.randn_like(one) * 0.05)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain adapters of every kind, each in a folder of its name."""
    root = tmp_path_factory.mktemp("adapters")
    for name, config in {**KINDS, **REFUSED}.items():
        saved(root / name, config, rows=1030 if name == "vocabulary" else 0)
    return root


FEW: dict[str, Any] = {"model": "tiny", "methods": ("yarn",), "factors": (4.0,), "tasks": ("position",), "windows": 1}


@pytest.fixture(scope="module")
def folder(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them evaluated in one run, so that what one leaves behind shows in the next."""
    place = tmp_path_factory.mktemp("results") / "out"
    names = ",".join(str(adapters / name) for name in KINDS)
    few = ["--methods", "yarn", "--factors", "4", "--tasks", "position", "--windows", "1"]
    assert main(["eval", "tiny", *few, "--adapters", names, "--output", str(place)]) == 0
    return place


def losses(model: Any, length: int = 512) -> float:
    """Nats of the one window, by the model's own loss."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    cutter, _, first = windows(sample(), tokenizer, length=length, limit=1)[0]
    ids = torch.tensor([cutter.ids[first : first + length]])
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss) * (length - 1)


def adapted(path: Path, rows: int | None = None, **config: Any) -> Any:
    """The adapter on its base, by PEFT's own loader; extended in the words of Transformers' own config."""
    model = base(**config)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, path)


@pytest.mark.parametrize("name", KINDS)
def test_arms_are_the_adapter_on_the_model_as_it_is_and_extended(name: str, adapters: Path, folder: Path) -> None:
    found = read(folder)
    rows = 1030 if name == "vocabulary" else None
    for arm, config in (
        (Arm(method=f"none+{name}", factor=1.0), {}),
        (Arm(method=f"yarn+{name}", factor=4.0), NATIVE),
    ):
        cell = found.cell(arm, "position", 512)
        assert cell is not None
        expected = losses(adapted(adapters / name, rows, **config))
        assert sum(cell.samples[0]["nll"]) == pytest.approx(expected, rel=1e-5)
    alone = found.cell(UNPATCHED, "position", 512)
    assert alone is not None
    assert abs(sum(alone.samples[0]["nll"]) - losses(adapted(adapters / name, rows))) > 1  # the adapter acts


def test_the_model_is_as_it_was_after_every_arm(adapters: Path) -> None:
    bench = Bench(Options(**FEW, adapters=tuple(str(adapters / name) for name in KINDS)))
    assert bench.model is not None
    before = {name: one.clone() for name, one in bench.model.named_parameters()}
    expected = losses(bench.model)
    for arm in bench.options.arms:
        with bench.patched(arm):
            pass
        after = dict(bench.model.named_parameters())
        assert after.keys() == before.keys()
        assert all(torch.equal(one, before[name]) for name, one in after.items()), arm
        assert losses(bench.model) == expected
        assert bench.model.config.vocab_size == 1024


def test_the_report_names_the_arms_and_how_each_is_made(adapters: Path, folder: Path) -> None:
    findings = read_findings(read(folder))
    assert [arm.label for arm in findings.arms][:4] == ["none", "my-lora", "whole", "written-over"]
    assert "yarn+my-lora x4" in [arm.label for arm in findings.arms]
    said = (folder / "report.md").read_text()
    assert "| my-lora |  | " in said
    assert "| yarn+my-lora | 4 | " in said
    assert "An adapter that carries no record (dora, my-lora, vocabulary, whole, written-over) was put on" in said
    page = (folder / "report.html").read_text()
    assert "No method" in page
    assert "none+" not in said + page.replace("&quot;none+", "")
    for method, factor, config in (("none+my-lora", 1.0, {}), ("yarn+my-lora", 4.0, NATIVE)):
        call = command_text(Arm(method=method, factor=factor), findings)
        made = eval(call, {"ropescale": ropescale, "peft": peft, "model": base()})
        ids = torch.arange(1, 301)[None] % 1024
        with torch.no_grad():
            ours, theirs = made(ids).logits, adapted(adapters / "my-lora", **config)(ids).logits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_an_adapter_that_changed_is_not_gone_on_with(adapters: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(adapters / "my-lora", tmp_path / "mine"))
    asked = Options(**{**FEW, "methods": ("none",), "tasks": ("cloze",)}, limit=2, adapters=(str(mine),))
    grid.run(asked, tmp_path / "out", "ropescale eval")
    before = lines(tmp_path / "out")
    grid.run(asked, tmp_path / "out", "ropescale eval")
    assert lines(tmp_path / "out") == before
    config = json.loads((mine / "adapter_config.json").read_text())
    (mine / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))
    with pytest.raises(InvalidArgumentError, match=r"must be of the same adapter none\+mine "):
        grid.run(asked, tmp_path / "out", "ropescale eval")
    shutil.copy(adapters / "my-lora" / "adapter_config.json", mine)
    held = load_file(mine / "adapter_model.safetensors")
    save_file({name: one * 2 for name, one in held.items()}, mine / "adapter_model.safetensors")
    with pytest.raises(InvalidArgumentError, match=r"must be of the same adapter none\+mine "):
        grid.run(asked, tmp_path / "out", "ropescale eval")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_acts_beside_the_layers_is_refused_by_name(kind: str, adapters: Path, tmp_path: Path) -> None:
    asked = Options(**FEW, adapters=(str(adapters / kind),))
    with pytest.raises(CheckpointError, match=f"got one of type {kind}, which acts beside them"):
        grid.run(asked, tmp_path / "out", "ropescale eval")
    assert not (tmp_path / "out").exists()


def changed(adapter: Path, folder: Path, **said: Any) -> Path:
    """A copy of an adapter whose config says something else."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(1, 301)[None] * 5 % 1024).logits
    return found


@pytest.mark.parametrize("name", ["my-lora", "whole", "vocabulary", "dora"])
def test_a_plain_adapter_is_merged_into_its_base(name: str, adapters: Path, tmp_path: Path) -> None:
    given = changed(adapters / name, tmp_path / name, base_model_name_or_path="/gone/model")
    (given / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(CheckpointError, match=r"must be found, got '/gone/model'; give base=MODEL"):
        merge(given, tmp_path / "merged")
    assert main(["merge", str(given), str(tmp_path / "merged"), "--base", "tiny"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = logits(adapted(adapters / name, 1030 if name == "vocabulary" else None))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    assert ropescale.record(model) is None
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize("verb", ["eval", "merge", "train"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda name, one: [] if "layers.1." in name else [(name, one)], "got LookupError: .*no values for .*layers"),
        (lambda name, one: [(name.replace("model.model.", "model."), one)], "got (Key|Lookup)Error: .*no values for"),
        (lambda name, one: [(name, one * float("nan"))], "every value must be finite"),
    ],
    ids=["a layer is missing", "keys of another wrapping", "NaN"],
)
def test_damaged_adapters_are_refused_everywhere(
    damage: Any, said: str, verb: str, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Path(shutil.copytree(adapters / "my-lora", tmp_path / "given"))
    file = given / "adapter_model.safetensors"
    save_file(dict(pair for name, one in load_file(file).items() for pair in damage(name, one)), file)
    commands = {
        "eval": ["eval", "tiny", "--methods", "none", "--adapters", str(given), "--tasks", "cloze"],
        "merge": ["merge", str(given)],
        "train": train_arguments(given),
    }
    output = [str(tmp_path / "out")] if verb == "merge" else ["--output", str(tmp_path / "out")]
    assert main([*commands[verb], *output]) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


def test_a_base_with_other_weights_than_the_named_one_is_refused(adapters: Path, tmp_path: Path) -> None:
    other = base()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    given = changed(adapters / "my-lora", tmp_path / "given", base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(InvalidArgumentError, match=r"base: weights must be those .* got other values than in '"):
        merge(given, tmp_path / "merged", "tiny")
    copied = Path(shutil.copytree(TINY, tmp_path / "copy"))
    again = changed(adapters / "my-lora", tmp_path / "again", base_model_name_or_path=str(copied))
    merge(again, tmp_path / "merged", "tiny")  # the same weights by another name


def train_arguments(adapter: Path, **more: Any) -> list[str]:
    """Two steps over one short file, which lies beside the output."""
    text = adapter.parent / "text.txt"
    text.write_text(
        "\n".join(f"The river {number} runs to the sea by the old town of {number}." for number in range(300))
    )
    given = {
        "model": "tiny",
        "factor": 2,
        "adapter": adapter,
        "data": text,
        "cache_dir": adapter.parent / "cache",
        "eval_texts": "sample",
        "eval_windows": 1,
        "eval_passkeys": 0,
        "eval_lengths": 64,
        "eval_strategy": "no",
        "length": 64,
        "max_steps": 2,
        "warmup_steps": 0,
        "batch_size": 2,
        "held_out": 0.2,
        **more,
    }
    return ["train", "lora", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def test_a_plain_adapter_is_trained_on(adapters: Path, tmp_path: Path) -> None:
    """With no learning to speak of it is what it was, on a base that is extended; and then it learns."""
    given = Path(shutil.copytree(adapters / "my-lora", tmp_path / "given"))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(given)
    still = tmp_path / "still"
    assert main([*train_arguments(given, learning_rate=1e-30), "--output", str(still)]) == 0
    native = {**NATIVE, "factor": 2.0}
    model = ropescale.load_adapter("tiny", still)
    torch.testing.assert_close(logits(model), logits(adapted(given, **native)), rtol=0, atol=1e-4)
    record = ropescale.record(model)
    assert record is not None
    assert (record.method, record.target_length) == ("yarn", 256)
    kept = AutoTokenizer.from_pretrained(still)
    assert (kept.chat_template, kept.model_max_length) == (tokenizer.chat_template, 256)
    assert main([*train_arguments(given), "--output", str(tmp_path / "on")]) == 0
    began, ended = (load_file(one / "adapter_model.safetensors") for one in (given, tmp_path / "on"))
    assert began.keys() == ended.keys()
    assert not any(torch.equal(one, ended[name]) for name, one in began.items())


def test_doctor_says_what_a_plain_adapter_is(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(adapters / "my-lora")]) == 0
    said = capsys.readouterr().out
    assert "a PEFT adapter of type LORA for " in said
    assert "without a ropescale.json: it stands on its base as that is" in said
    command = shlex.split(said.rpartition("next: ")[2])
    assert main([*command[1:], "--dry-run"]) == 0
    given = changed(adapters / "my-lora", tmp_path / "given", base_model_name_or_path="/gone/model")
    assert main(["doctor", str(given)]) == 1
    assert "must name a model that is found here or on a hub that is reached" in capsys.readouterr().out
    assert main(["doctor", str(adapters / "PROMPT_TUNING")]) == 0
    assert "which acts beside the layers of its base: PEFT alone runs it" in capsys.readouterr().out
    kinds = {kind.value for kind, of in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items() if issubclass(of, PROMPTED)}
    assert kinds | {"ADAPTION_PROMPT"} == set(BESIDE)


def test_an_adapter_whose_prompts_would_be_others_is_refused(adapters: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(adapters / "my-lora", tmp_path / "given"))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(given)
    Bench(Options(**FEW, adapters=(str(given),)))  # all that the model's own tokenizer has is the same
    model = base()
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    chatty = AutoTokenizer.from_pretrained(tmp_path / "model")
    chatty.chat_template = "{{ messages[0]['role'] }}: {{ messages[0]['content'] }}"
    chatty.save_pretrained(tmp_path / "model")
    asked = Options(**{**FEW, "model": str(tmp_path / "model")}, adapters=(str(given),), chat=True)
    with pytest.raises(InvalidArgumentError, match="adapters must have the template of the model"):
        Bench(asked)
    tokens = json.loads((given / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (given / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(InvalidArgumentError, match="adapters must have the tokens of the model"):
        Bench(Options(**FEW, adapters=(str(given),)))
