"""What engines that read config.json are told, and what their classes leave out."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import (
    FAMILIES,
    IGNORED,
    TINY,
    checkpoint,
    config_in,
    often,
)
from families import (
    FIXED,
    NAMES,
    family,
    knobs_for,
    logits,
)
from shapes import SHAPES, published
from transformers import AutoModelForCausalLM

import ropescale
from ropescale.errors import (
    ExportError,
)
from ropescale.export import export

pytestmark = IGNORED


def spoken(path: Path) -> torch.Tensor:
    """[1, n, vocabulary]: the logits of Transformers alone on the folder."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.randint(3, 1000, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


# vLLM and SGLang have divisors for halves only; MLX-LM reads one rotation, and no attention factor beside divisors;
# and some of their classes read theta alone
REFUSED = {
    ("glm", "vllm", "ntk_fixed"),
    ("glm", "sglang", "ntk_fixed"),
    ("phi3", "mlx", "yarn"),
    *((name, "mlx", "") for name in ("gemma", "gemma3_text", "glm", "gpt_neox", "starcoder2")),
    *((name, "sglang", "") for name in ("gemma", "gemma3_text", "starcoder2")),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("to", ["transformers", "vllm", "sglang", "mlx"])
@pytest.mark.parametrize("name", often(FAMILIES, "gemma3_text", "glm", "gpt_neox", "llama", "phi3"))
def test_the_configs_of_families_load_in_transformers(name: str, to: str, tmp_path: Path) -> None:
    """Whatever an engine is told, Transformers reads the same rotation from it; or the family is refused by name."""
    source = checkpoint(tmp_path / "source", name)
    for method in ("yarn", "by_parts", "ntk_fixed", "linear"):
        out = tmp_path / method
        if (name, to, method) in REFUSED or (name, to, "") in REFUSED:
            with pytest.raises(ExportError, match=rf"^{name}: "):
                export(source, out, to=to, method=method, factor=4)
            assert not out.exists()
            continue
        export(source, out, to=to, method=method, factor=4)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        ropescale.patch(model, method, factor=4)
        ids = torch.randint(3, 1000, (1, 300), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert (spoken(out) - model(input_ids=ids).logits).abs().max() < 1e-5


def test_weights_are_copied_byte_for_byte(tmp_path: Path) -> None:
    for to in ("transformers", "vllm", "sglang", "mlx"):
        export("tiny", tmp_path / to, to=to, method="yarn", factor=4)
        assert (tmp_path / to / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()


def test_vllm_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = export("tiny", tmp_path / "a", to="vllm", method="ntk_fixed", factor=4)
    rope = config_in(tmp_path / "a")["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert (rope["short_factor"], rope["short_mscale"], rope["long_mscale"]) == (rope["long_factor"], 1.0, 1.0)
    assert done.serves == 512
    flags = """VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 --hf-overrides '{"rope_parameters": {"rope_type": "longrope", """
    assert done.overrides.startswith(flags)
    assert done.overrides.endswith(""""max_position_embeddings": 512}' --max-model-len 512""")
    # vLLM multiplies the maximum by the factor of linear
    export("tiny", tmp_path / "b", to="vllm", method="linear", factor=4)
    assert config_in(tmp_path / "b")["max_position_embeddings"] == 128
    # and caps it by the tokenizer's
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_vllm_needs_a_flag_where_the_original_length_is_an_entry_of_its_own(tmp_path: Path) -> None:
    done = export(checkpoint(tmp_path / "source", "phi3"), tmp_path / "a", to="vllm", method="yarn", factor=4)
    assert (done.serves, done.flags) == (128, ("--max-model-len 512",))
    assert "vLLM will serve 128 tokens, 512 with --max-model-len 512" in str(done)


def test_sglang_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = export("tiny", tmp_path / "a", to="sglang", method="yarn", factor=4, attention_factor=1.0)
    rope = config_in(tmp_path / "a")["rope_parameters"]
    assert rope["attn_factor"] == pytest.approx(1 / (1 + 0.1 * np.log(4)))
    assert done.overrides.startswith("--json-model-override-args '{")
    assert "exact by its source, version 0.5.23, not run" in str(done)


def test_mlx_is_told_in_its_own_words(tmp_path: Path) -> None:
    export("tiny", tmp_path / "a", to="mlx", method="yarn", factor=4, attention_factor=1.0)
    config = config_in(tmp_path / "a")
    assert (config["rope_theta"], config["rope_scaling"]["type"]) == (1e4, "yarn")
    assert config["rope_scaling"]["mscale"] == 0.0
    assert "mscale_all_dim" not in config["rope_scaling"], "its own default"
    with pytest.raises(ExportError, match=r"^llama: MLX-LM has one divisor per pair with an attention factor of 1 or"):
        export("tiny", tmp_path / "b", to="mlx", method="yarn", factor=4, truncate=False)


# As the classes of vLLM 0.32.0, SGLang 0.5.23 and MLX-LM 0.32.2 have it: what they are told in a type, and what it is
UNREAD = [
    ("dbrx", "vllm", "yarn", "that rotates by entries of its own, as in pretraining; raise the limit alone"),
    ("dbrx", "sglang", "ntk", "that rotates by entries of its own, as in pretraining; raise the limit alone"),
    (
        "deepseek_v3",
        "vllm",
        "linear",
        "that reads rope_type default and yarn alone; nearest that it holds exactly: ntk",
    ),
    ("deepseek_v2", "sglang", "by_parts", "that reads rope_type default and yarn alone; nearest"),
    (
        "gpt_oss",
        "vllm",
        "ntk",
        "that reads rope_type yarn alone; nearest that it holds exactly: yarn without its knobs",
    ),
    ("mixtral", "sglang", "yarn", "that reads theta alone; nearest that it holds exactly: ntk, or export"),
    ("qwen3_moe", "mlx", "yarn", "that reads theta alone; nearest that it holds exactly: ntk, or export"),
    ("gemma4_text", "sglang", "linear", "that reads theta alone; nearest that it holds exactly: ntk, or export"),
]
TOLD = [
    ("dbrx", "vllm", "unscaled"),
    ("deepseek_v3", "vllm", "yarn"),
    ("gpt_oss", "vllm", "yarn"),
    ("mixtral", "sglang", "ntk"),
    ("qwen3_moe", "mlx", "ntk"),
    ("gemma4_text", "vllm", "linear"),
]


@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize(("name", "to", "method", "why"), [case for case in UNREAD if case[0] in NAMES])
def test_what_a_class_of_an_engine_leaves_out_is_refused(
    name: str, to: str, method: str, why: str, tmp_path: Path
) -> None:
    """Otherwise the engine would serve the long texts of the export with the rotation of pretraining."""
    family(name).save_pretrained(tmp_path / "source")
    with pytest.raises(ExportError, match=re.escape(why)):
        export(tmp_path / "source", tmp_path / "out", to=to, method=method, factor=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize(("name", "to", "method"), [case for case in TOLD if case[0] in NAMES])
def test_what_a_class_of_an_engine_reads_is_told_to_it(name: str, to: str, method: str, tmp_path: Path) -> None:
    model = family(name)
    model.save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to=to, method=method, factor=4)
    ropescale.patch(model, method, factor=4)
    stranger = type(model).from_pretrained(tmp_path / "out")
    assert (logits(stranger, 160) - logits(model, 160)).abs().max() <= 1e-5


@pytest.mark.parametrize("knobs", [{"truncate": False}, {"attention_factor": 1.0}])
@pytest.mark.parametrize(("name", "to"), [("deepseek_v3", "vllm"), ("deepseek_v3", "sglang"), ("gpt_oss", "vllm")])
def test_knobs_that_a_class_does_not_know(name: str, to: str, knobs: dict[str, Any], tmp_path: Path) -> None:
    """DeepSeek's reads an attention factor by mscale, and whole pairs alone; that of GPT-OSS whole pairs or not."""
    family(name).save_pretrained(tmp_path / "source")
    arguments = {"to": to, "method": "yarn", "factor": 4, **knobs}
    if (name == "gpt_oss") == ("attention_factor" in knobs):
        with pytest.raises(ExportError, match=r"nearest that it holds exactly: .*yarn without its knobs"):
            export(tmp_path / "source", tmp_path / "out", **arguments)
        return
    export(tmp_path / "source", tmp_path / "out", **arguments)
    rope = config_in(tmp_path / "out")["rope_parameters"]
    assert rope.get("truncate", True) or name == "gpt_oss"
    if name != "gpt_oss":
        assert 1 + 0.1 * rope["mscale"] * np.log(4) == pytest.approx(1.0)
        assert not {"attn_factor", "mscale_all_dim"} & set(rope)


def test_a_length_that_a_class_keeps_by_a_name_of_its_own_stands_there_too(tmp_path: Path) -> None:
    family("dbrx").save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to="vllm", method="unscaled", factor=4)
    config = config_in(tmp_path / "out")
    assert (config["max_position_embeddings"], config["max_seq_len"]) == (256, 256)


# What each engine makes of the softmax scale and the attention factor of DeepSeek's yarn, from what it is told
def by_engine(rope: dict[str, Any], to: str) -> tuple[float, float]:
    """The attention factor and the softmax scale of latent attention, as the classes of the engines work them out."""

    def m(scale: float) -> float:
        return 1 + 0.1 * scale * np.log(rope["factor"])

    ratio = m(rope.get("mscale", 1)) / m(rope.get("mscale_all_dim", 0))
    if to == "vllm" and rope.get("attention_factor") == 1.0:
        return ratio, 1.0
    return ratio * (rope.get("attn_factor", 1) if to == "sglang" else 1), m(rope.get("mscale_all_dim", 0)) ** 2


@pytest.mark.parametrize("to", ["vllm", "sglang", "mlx", "transformers"])
@pytest.mark.parametrize("name", ["deepseek v2", "deepseek v3", "kimi k2"])
def test_the_softmax_scale_of_latent_attention_is_told_to_every_engine(name: str, to: str, tmp_path: Path) -> None:
    model = published(name)
    model.save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to=to)
    stranger = type(model).from_pretrained(tmp_path / "out")
    assert (logits(stranger, 160) - logits(model, 160)).abs().max() <= 1e-5
    scale = SHAPES[name]["rope_scaling"]
    attention, softmax = by_engine(config_in(tmp_path / "out")["rope_parameters"], to)
    assert attention == pytest.approx(1.0)
    assert softmax == pytest.approx((1 + 0.1 * scale["mscale_all_dim"] * np.log(scale["factor"])) ** 2)


def test_an_export_is_loaded_patched_whatever_engine_it_was_written_for(tmp_path: Path) -> None:
    patched = ropescale.patch(ropescale.load("tiny"), "ntk", factor=4)
    for to in ("transformers", "vllm", "sglang", "mlx"):
        export("tiny", tmp_path / to, to=to, method="ntk", factor=4)
        loaded = ropescale.load(tmp_path / to)
        assert ropescale.record(loaded) == ropescale.record(patched)
        with pytest.raises(ropescale.RopescaleError, match=r"is already patched|must not be patched yet"):
            ropescale.patch(loaded, "linear", factor=2)


@pytest.mark.parametrize("to", ["mlx", "sglang", "transformers", "vllm"])
@pytest.mark.parametrize("name", often(["gpt_neox", "llama", "phi3"], "gpt_neox", "phi3"))
def test_the_doctor_finds_nothing_in_what_is_exported(name: str, to: str, tmp_path: Path) -> None:
    """Whatever words an engine wants for a rotation."""
    model = family(name)
    model.save_pretrained(tmp_path / "source")
    pairs, held = ropescale.read_geometry(model.config).pairs, 0
    for method in FIXED:
        out = tmp_path / method
        try:
            export(tmp_path / "source", out, to=to, method=method, factor=4, **knobs_for(method, pairs))
        except ExportError:
            continue
        held += 1
        assert ropescale.diagnose(out) == [], method
    assert held >= (1 if (name, to) == ("gpt_neox", "mlx") else 5), "MLX-LM's GPT-NeoX reads none but its own entries"
