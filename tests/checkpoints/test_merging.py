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
from merges import BOTH, COMMON, LORA, TINY, adapter, changed, lora
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ropescale
from ropescale.adapters import load_adapter, merge, save_adapter
from ropescale.errors import CheckpointError
from ropescale.export import export, verify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


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


@pytest.mark.sampled(3)
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
