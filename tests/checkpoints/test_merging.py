"""Adapters of every kind merged and exported: what the unmerged adapter computes, or a sentence that says why not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from exports import checkpoint
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ropescale
from ropescale import cli
from ropescale.adapters import load_adapter, merge, save_adapter
from ropescale.checkpoints import resolve
from ropescale.digest import differing, digest_of
from ropescale.errors import CheckpointError, ExportError, InvalidArgumentError
from ropescale.export import export, verify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

TINY = Path(resolve("tiny"))
COMMON: dict[str, Any] = {"task_type": "CAUSAL_LM"}
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], **COMMON}
BOTH = ["embed_tokens", "lm_head"]


def lora(*more: str, **given: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: LoraConfig(**{**LORA, "target_modules": [*LORA["target_modules"], *more], **given})


KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoRA": lora(),
    "LoRA on the embedding": lora("embed_tokens"),
    "LoRA on the head": lora("lm_head"),
    "LoRA on both": lora(*BOTH),
    "LoRA on both, kept as one": lora("embed_tokens", ensure_weight_tying=True),
    "LoRA with biases": lora(bias="lora_only"),
    "rsLoRA": lora(use_rslora=True),
    "DoRA": lora("embed_tokens", use_dora=True),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **COMMON
    ),
    "a head of its own": lora(modules_to_save=["lm_head"]),
    "an embedding of its own": lora(modules_to_save=["embed_tokens"]),
    "both of their own": lora(modules_to_save=BOTH),
    "both of their own, kept as one": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "norms of their own": lora(modules_to_save=["norm", "input_layernorm"]),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        token_indices=[3, 5, 7], target_modules=["embed_tokens"], **COMMON
    ),
    "LoRA with trainable tokens": lora(trainable_token_indices=[3, 5, 7]),
    "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"], **COMMON),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"], **COMMON),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], save_projection=False, **COMMON),
    "a larger vocabulary": lora(),
    "a larger vocabulary and LoRA on it": lora("embed_tokens"),
    "a larger vocabulary of its own": lora(modules_to_save=BOTH),
}
# Where the head has to be told apart from the embedding that it was
APART = {
    "LoRA on the embedding",
    "LoRA on the head",
    "LoRA on both",
    "DoRA",
    "a head of its own",
    "an embedding of its own",
    "both of their own",
    "a larger vocabulary and LoRA on it",
    "a larger vocabulary of its own",
}
REFUSED: dict[str, tuple[Callable[[], peft.PeftConfig], str]] = {
    "prompt tuning": (
        lambda: peft.PromptTuningConfig(num_virtual_tokens=4, **COMMON),
        "got one of type PROMPT_TUNING, which acts beside them",
    ),
    "prefix tuning": (
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, **COMMON),
        "got one of type PREFIX_TUNING, which acts beside them",
    ),
    "adaption prompt": (
        lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, **COMMON),
        "got one of type ADAPTION_PROMPT, which acts beside them",
    ),
    "aLoRA": (lora(alora_invocation_tokens=[3, 4]), "whose weights can be added to the base's, got aLoRA does not"),
    "LoRA with a bias": (lora(lora_bias=True), "whose weights can be added to the base's, got Impossible to merge"),
    "layers replicated": (lora(layer_replication=[[0, 2], [1, 2]]), "which are one in a LlamaForCausalLM"),
}
IDS = torch.randint(1024, (1, 100), generator=torch.Generator().manual_seed(3))
IDS[0, ::9], IDS[0, ::7] = 3, 5


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A random model whose head is its embedding, and one whose head is not."""
    root = tmp_path_factory.mktemp("bases")
    return {
        tied: checkpoint(root / f"{tied}", hidden_size=128, head_dim=32, tie_word_embeddings=tied)
        for tied in (True, False)
    }


def adapter(folder: Path, base: Path | str, config: peft.PeftConfig, *, rows: int = 0, random: float = 0.03) -> Any:
    """The adapted model, whose adapter PEFT has saved in a folder."""
    model = AutoModelForCausalLM.from_pretrained(resolve(str(base)))
    torch.manual_seed(0)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for one in wrapped.parameters():
            if one.requires_grad:
                one.add_(torch.randn_like(one) * random)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_computes_what_the_unmerged_adapter_computes(
    kind: str, tied: bool, bases: dict[bool, Path], tmp_path: Path
) -> None:
    rows = 1030 if "larger vocabulary" in kind else 0
    if kind == "a larger vocabulary and LoRA on it" and not tied:  # of which PEFT does not save the head
        adapter(tmp_path / "adapter", bases[tied], KINDS[kind](), rows=rows)
        with pytest.raises(CheckpointError, match=r"^adapter: must bring the head of its 1,030 tokens along, where "):
            export(bases[tied], tmp_path / "out", to="transformers", method="none", adapter=tmp_path / "adapter")
        return
    expected = logits(adapter(tmp_path / "adapter", bases[tied], KINDS[kind](), rows=rows))
    given = {"method": "none", "adapter": tmp_path / "adapter"}
    export(bases[tied], tmp_path / "out", to="transformers", **given)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(model) - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert model.config.tie_word_embeddings is (tied and kind not in APART)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == (rows or 1024)
    assert (logits(AutoModelForCausalLM.from_pretrained(bases[tied])) - expected[..., :1024]).abs().max() > 1e-2
    export(bases[tied], tmp_path / "out.gguf", to="gguf", **given)
    verdict = verify(tmp_path / "out.gguf", engine="llama.cpp", reference=bases[tied], steps=2, lengths=[100])
    assert verdict.exact, str(verdict)
    assert verdict.tolerance == 2e-3


@pytest.mark.parametrize("kind", REFUSED)
def test_what_weights_cannot_say_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    config, said = REFUSED[kind]
    adapter(tmp_path / "adapter", "tiny", config())
    with pytest.raises(CheckpointError, match=rf"adapter: must be an adapter .*{re.escape(said)}"):
        export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4, adapter=tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("kind", ["LoRA on the embedding", "a head of its own", "LoRA with trainable tokens"])
def test_what_is_merged_computes_what_the_unmerged_adapter_computes(kind: str, tmp_path: Path) -> None:
    """The embedded model's head is its embedding."""
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(base, KINDS[kind]())
    with torch.no_grad():
        for one in wrapped.parameters():
            if one.requires_grad:
                one.add_(torch.randn_like(one) * 0.05)
    save_adapter(wrapped, tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(model), logits(wrapped), rtol=0, atol=2e-5)
    assert model.config.tie_word_embeddings is (kind not in APART)
    export("tiny", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter")
    assert verify(tmp_path / "out", engine="transformers", lengths=[100], steps=2).exact
    export("tiny", tmp_path / "vllm", to="vllm", adapter=tmp_path / "adapter")
    held = load_file(tmp_path / "vllm" / "model.safetensors")
    assert ("lm_head.weight" in held) is (kind in APART)


# ---- keys and values


def changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "keys of another wrapping": (
        lambda held: {name.replace("model.model.layers", "model.layers"): one for name, one in held.items()},
        r"the adapter's weights must fit the base, got LookupError: .*no values for .*layers\.0",
    ),
    "half of the layers": (
        lambda held: {name: one for name, one in held.items() if "layers.1." not in name},
        r"the adapter's weights must fit the base, got LookupError: .*no values for .*layers\.1",
    ),
    "one key too many": (
        lambda held: {**held, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 128)},
        r"got LookupError: .*values for .*layers\.9\..*, which it has not",
    ),
    "no head of its own": (
        lambda held: {name: one for name, one in held.items() if "lm_head" not in name},
        r"the adapter's weights must fit the base, got (KeyError|LookupError): .*lm_head",
    ),
    "NaN": (lambda held: {name: one * float("nan") for name, one in held.items()}, r"every value must be finite, got"),
    "one infinity": (
        lambda held: {**held, (last := max(held)): torch.full_like(held[last], float("inf"))},
        r"every value must be finite, got NaN or infinity in ",
    ),
    "another shape": (
        lambda held: {name: one[..., :-1].contiguous() for name, one in held.items()},
        r"the adapter's weights must fit the base, got RuntimeError",
    ),
}


@pytest.mark.parametrize("carried", [False, True], ids=["plain", "with its record"])
@pytest.mark.parametrize("fault", FAULTS)
def test_keys_and_values_are_those_of_the_base_or_refused(fault: str, carried: bool, tmp_path: Path) -> None:
    config = LoraConfig(**LORA, modules_to_save=["lm_head"])
    if carried:
        base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        save_adapter(peft.get_peft_model(base, config), tmp_path / "adapter")
    else:
        adapter(tmp_path / "adapter", "tiny", config)
    change, said = FAULTS[fault]
    changed(tmp_path / "adapter", change)
    with pytest.raises(CheckpointError, match=said):
        export(
            "tiny",
            tmp_path / "out",
            to="transformers",
            adapter=tmp_path / "adapter",
            **({} if carried else {"method": "yarn", "factor": 4}),
        )
    if carried:
        base = ropescale.load("tiny")
        before = {name: one.clone() for name, one in base.state_dict().items()}
        with pytest.raises(CheckpointError, match=said):
            load_adapter(base, tmp_path / "adapter")
        assert ropescale.record(base) is None
        assert all(torch.equal(one, before[name]) for name, one in base.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_base_that_was_resized_for_an_adapter_is_as_it_was_where_that_fails(tmp_path: Path) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    base.resize_token_embeddings(1030, mean_resizing=False)
    save_adapter(peft.get_peft_model(base, LoraConfig(**LORA, modules_to_save=BOTH)), tmp_path / "adapter")
    again = ropescale.load("tiny")
    kept = again.get_input_embeddings().weight
    before = kept.clone()
    changed(tmp_path / "adapter", lambda held: {name: one for name, one in held.items() if "layers.1." not in name})
    with pytest.raises(CheckpointError, match=r"LookupError: .*no values for"):
        load_adapter(again, tmp_path / "adapter")
    assert again.get_input_embeddings().weight is kept
    assert torch.equal(kept, before)
    assert again.config.vocab_size == again.get_input_embeddings().num_embeddings == 1024
    assert logits(again).shape[-1] == 1024


# ---- the files beside the weights


def damaged(name: str, folder: Path) -> None:
    match name:
        case "parameters cut off":
            file = folder / "ropescale.safetensors"
            file.write_bytes(file.read_bytes()[:50])
        case "parameters not finite":
            file = folder / "ropescale.safetensors"
            held = {key: one * float("nan") for key, one in load_file(file).items()}
            save_file(held, file, metadata={"format": "pt"})
        case "weights cut off":
            file = folder / "adapter_model.safetensors"
            file.write_bytes(file.read_bytes()[:-10])
        case "another type in its config":
            file = folder / "adapter_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "bias": True}))
        case "a digest of another kind":
            file = folder / "ropescale.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "base": {"a": ["int8", [3], [1.0]]}}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "parameters cut off",
            r"ropescale\.safetensors: must be a whole safetensors file, got one that cannot be read",
        ),
        ("parameters not finite", r"ropescale\.safetensors: every value must be finite, got NaN or infinity in "),
        ("weights cut off", r"adapter: must hold an adapter_config\.json and weights that this version of PEFT reads"),
        ("another type in its config", r"adapter: the adapter's weights must fit the base, got AttributeError"),
        ("a digest of another kind", r"config: base of the ropescale record must hold the type, shape and values of "),
    ],
)
def test_damaged_files_of_an_adapter_are_refused(damage: str, said: str, tmp_path: Path) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "t5", factor=4)
    save_adapter(peft.get_peft_model(base, LoraConfig(**LORA)), tmp_path / "adapter")
    damaged(damage, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=said):
        merge(tmp_path / "adapter", tmp_path / "merged", "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize("carried", [False, True], ids=["plain", "with its record"])
def test_an_adapter_s_tokenizer_is_kept(carried: bool, tmp_path: Path) -> None:
    """Template and added tokens, by export as by merge."""
    base = ropescale.load("tiny")
    if carried:
        ropescale.patch(base, "yarn", factor=4)
    base.resize_token_embeddings(1026, mean_resizing=False)
    wrapped = peft.get_peft_model(base, LoraConfig(**LORA, modules_to_save=BOTH))
    save_adapter(wrapped, tmp_path / "adapter") if carried else wrapped.save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "adapter")
    method = {} if carried else {"method": "yarn", "factor": 4}
    export("tiny", tmp_path / "out", to="vllm", adapter=tmp_path / "adapter", **method)
    export("tiny", tmp_path / "out.gguf", to="gguf", adapter=tmp_path / "adapter", **method)
    written = [tmp_path / "out"]
    if carried:
        written.append(merge(tmp_path / "adapter", tmp_path / "merged", "tiny"))
    for folder in written:
        found = AutoTokenizer.from_pretrained(folder)
        assert found.chat_template == TEMPLATE
        assert found("<|end|>").input_ids == [1025]
        assert found.model_max_length == 512
        assert len(found) == AutoConfig.from_pretrained(folder).vocab_size
    verdict = verify(tmp_path / "out.gguf", engine="llama.cpp", steps=2, lengths=[100])
    assert verdict.exact, str(verdict)


# ---- another base


def test_another_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(9)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(tmp_path / "other")
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    save_adapter(peft.get_peft_model(base, LoraConfig(**LORA)), tmp_path / "adapter")
    said = r"base: weights must be those that the adapter .* was trained on, got other values in \d+ of \d+ tensors"
    with pytest.raises(InvalidArgumentError, match=said):
        load_adapter(tmp_path / "other", tmp_path / "adapter")
    other, path = str(tmp_path / "other"), str(tmp_path / "adapter")
    assert cli.main(["merge", path, str(tmp_path / "merged"), "--base", other]) == 2
    assert cli.main(["export", other, str(tmp_path / "out"), "--to", "vllm", "--adapter", path]) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert len(refusals) == 2
    assert all(re.search(said, line) for line in refusals)
    # what the user insists on, and records of earlier versions
    record = tmp_path / "adapter" / "ropescale.json"
    record.write_text(
        json.dumps({name: one for name, one in json.loads(record.read_text()).items() if name != "base"})
    )
    load_adapter(tmp_path / "other", tmp_path / "adapter")


def nearly(model: Any) -> Any:
    """A tenth of a percent more in one layer, as a longer training leaves it."""
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.001)
    return model


def test_a_base_is_the_same_in_another_type_and_in_other_files(tmp_path: Path) -> None:
    base = ropescale.load("tiny")
    digest = digest_of(base, without=set())
    assert differing(base, digest) == ([], len(digest))
    base.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=dtype)
        assert differing(again, digest) == ([], len(digest))
        assert differing(base, digest_of(again, without=set())) == ([], len(digest))
        assert differing(again.float(), digest_of(base.to(torch.bfloat16), without=set())) == ([], len(digest))
        base = ropescale.load("tiny")
    assert differing(nearly(base), digest)[0] == ["model.layers.0.mlp.up_proj.weight"]


def test_a_quantised_base_is_said_to_be_one_rather_than_refused(tmp_path: Path) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    save_adapter(peft.get_peft_model(base, LoraConfig(**LORA)), tmp_path / "adapter")
    quantised = nearly(ropescale.load("tiny"))
    quantised.is_quantized = True
    with pytest.warns(
        UserWarning, match=r"base: whether its weights are those that the adapter .* cannot be seen: 1 of"
    ):
        load_adapter(quantised, tmp_path / "adapter")


# ---- a verification that can fail


def planted(where: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    match where:
        case "weights":
            held = load_file(file)
            held["model.layers.1.mlp.up_proj.weight"] *= 1.02
            save_file(held, file, metadata={"format": "pt"})
        case "the head":
            held = load_file(file)
            held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
            save_file(held, file, metadata={"format": "pt"})
        case "tokenizer":
            text = json.loads((folder / "tokenizer.json").read_text())
            words = text["model"]["vocab"]
            first, second = sorted(words, key=lambda word: words[word])[400:402]
            words[first], words[second] = words[second], words[first]
            merges = text["model"]["merges"]
            merges[150], merges[10] = merges[10], merges[150]
            (folder / "tokenizer.json").write_text(json.dumps(text))
        case "template":
            (folder / "chat_template.jinja").write_text("{{ messages }}")
        case "config":
            config["rms_norm_eps"] = 1e-2
        case "rotation":
            config["rope_parameters"]["factor"] = 8.0
    (folder / "config.json").write_text(json.dumps(config))


WHERE = ("weights", "tokenizer", "template", "config", "rotation")


@pytest.mark.parametrize(
    ("with_adapter", "where"), [*((True, one) for one in (*WHERE, "the head")), *((False, one) for one in WHERE)]
)
def test_damage_to_an_export_is_found(where: str, with_adapter: bool, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    if with_adapter:
        adapter(tmp_path / "adapter", "tiny", LoraConfig(**LORA, modules_to_save=BOTH))
        given = {"adapter": tmp_path / "adapter"}
    export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4, **given)
    asked: dict[str, Any] = {"engine": "transformers", "steps": 2, "lengths": [300]}
    assert verify(tmp_path / "out", **asked).exact
    planted(where, tmp_path / "out")
    verdict = verify(tmp_path / "out", **asked)
    assert not verdict.exact, str(verdict)
    assert "OFF in transformers" in str(verdict)


def test_an_export_says_which_adapter_is_in_it(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", "tiny", LoraConfig(**LORA))
    for to, name in (("gguf", "out.gguf"), ("transformers", "out")):
        engine = "llama.cpp" if to == "gguf" else to
        done = export("tiny", tmp_path / name, to=to, method="yarn", factor=4, adapter=tmp_path / "adapter")
        assert done.verifying == f"ropescale verify-export {tmp_path / name} --engine {engine}"
        asked: dict[str, Any] = {"engine": engine, "steps": 2, "lengths": [300]}
        assert verify(tmp_path / name, **asked).exact
        content = (tmp_path / name / "config.json" if to != "gguf" else tmp_path / name).read_bytes()
        assert str(tmp_path).encode() not in content, "nothing of a disk is published"
        (tmp_path / "adapter").rename(tmp_path / "elsewhere")
        with pytest.raises(
            CheckpointError, match=r"^adapter: must be the one that was merged into .*, 'adapter', got"
        ):
            verify(tmp_path / name, **asked)
        assert verify(tmp_path / name, adapter=tmp_path / "elsewhere", **asked).exact
        (tmp_path / "elsewhere").rename(tmp_path / "adapter")
    changed(tmp_path / "adapter", lambda held: {key: one * 2 for key, one in held.items()})
    with pytest.raises(CheckpointError, match=r"whose weights have changed since; pass adapter=DIR"):
        verify(tmp_path / "out", **asked)
    assert not verify(tmp_path / "out", adapter=tmp_path / "adapter", **asked).exact


def test_weights_in_half_precision_are_held_against_the_adapter_too(tmp_path: Path) -> None:
    """Merged in bfloat16 the sum is rounded to it: what counts is the divergence."""
    source = tmp_path / "source"
    ropescale.load("tiny").to(torch.bfloat16).save_pretrained(source)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(source)
    adapter(tmp_path / "adapter", source, lora("embed_tokens")())
    for to, name in (("gguf", "out.gguf"), ("transformers", "out")):
        export(source, tmp_path / name, to=to, method="yarn", factor=4, adapter=tmp_path / "adapter")
        verdict = verify(tmp_path / name, engine="llama.cpp" if to == "gguf" else to, lengths=[300], steps=4)
        assert verdict.rounded
        assert verdict.exact, str(verdict)


# ---- what is asked for


def test_an_unextended_model_is_exported_on_purpose_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", "tiny", str(tmp_path / "out"), "--to", "vllm"]
    assert cli.main(asked) == 2
    assert "method must be given for a model whose context is as pretrained" in capsys.readouterr().err.replace(
        ":", ""
    )
    assert cli.main([*asked, "--method", "none", "--factor", "4"]) == 2
    assert "must be left out with --method none" in capsys.readouterr().err
    assert cli.main([*asked, "--method", "none"]) == 0
    assert "positions as pretrained" in capsys.readouterr().out


def test_a_source_without_a_tokenizer_is_said_to_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ropescale.patch(ropescale.load("tiny"), "yarn", factor=4).save_pretrained(tmp_path / "source")
    assert cli.main(["export", str(tmp_path / "source"), str(tmp_path / "out"), "--to", "vllm"]) == 0
    assert f"no tokenizer in {tmp_path / 'source'}, and so none in the export" in capsys.readouterr().out
    assert cli.main(["doctor", str(tmp_path / "source")]) == 1
    assert "no-tokenizer: source: a tokenizer must lie beside the weights" in capsys.readouterr().out
    cli.main(["doctor", "tiny"])
    assert "no tokenizer" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gguf_without_a_tokenizer_is_refused_in_words(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (source / file).unlink()
    with pytest.raises(CheckpointError, match=r"source: must hold a tokenizer, got none of tokenizer\.json, "):
        export(source, tmp_path / "out.gguf", to="gguf", method="yarn", factor=2)


def test_the_printed_commands_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["export", "tiny", str(tmp_path / "a b"), "--to", "vllm", "--method", "yarn", "--factor", "4"]) == 0
    )
    said = capsys.readouterr().out
    assert f"to serve it:\n  vllm serve '{tmp_path / 'a b'}'\n" in said
    assert f"\n  VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 vllm serve {TINY} --hf-overrides '{{" in said
    assert f"\nnext: ropescale verify-export '{tmp_path / 'a b'}' --engine vllm\n" in said


# ---- a record that the rest of the config contradicts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda config: config.update(
                rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
            ),
            r"config\.rope_parameters must be what the ropescale record gives",
        ),
        (
            lambda config: config.update(max_position_embeddings=1024),
            r"config\.max_position_embeddings must be what the ropescale record gives",
        ),
        (
            lambda config: config["ropescale"].update(method="bogus"),
            r"the ropescale record must name a method of version",
        ),
    ],
    ids=["another rotation", "another length", "another method"],
)
def test_a_record_that_is_contradicted_is_not_exported(
    change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    source = ropescale.rescale_checkpoint("tiny", tmp_path / "source", factor=4)
    export(source, tmp_path / "right", to="vllm")
    export(tmp_path / "right", tmp_path / "again", to="transformers")
    config = json.loads((source / "config.json").read_text())
    change(config)
    (source / "config.json").write_text(json.dumps(config))
    for to in ("transformers", "gguf"):
        with pytest.raises((CheckpointError, ExportError), match=said):
            export(source, tmp_path / "wrong.gguf", to=to)
    assert not (tmp_path / "wrong.gguf").exists()
