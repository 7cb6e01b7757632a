"""GGUF: what a file holds, what an existing one takes, and the tokenizer in it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from exports import (
    IGNORED,
    TINY,
    checkpoint,
    often,
    require_exact,
    with_entry,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import ropescale
from ropescale import cli
from ropescale.errors import (
    CheckpointError,
    ExportError,
    RopescaleError,
)
from ropescale.export import export, patch_gguf, verify
from ropescale.export.engines.llama_cpp import InProcess
from ropescale.export.gguf import reading

pytestmark = IGNORED


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "got --to gguf without --method; name the method"),
        ("--method yarn --factor 4 --existing replace", "got --to gguf --existing; leave the others out"),
        ("--method yarn --factor 4 --layers all --adapter x", "got --to gguf --layers --adapter; leave the others"),
        ("--method yarn --factor 4 --outtype q8_0 --lossy", "got --to gguf --outtype --lossy; leave the others out"),
    ],
)
def test_what_a_copied_gguf_file_has_no_use_for_is_refused(
    more: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", "a.gguf", str(tmp_path / "b.gguf"), "--to", "gguf", "--patch-gguf", *more.split()]
    assert cli.main(given) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "plain.gguf"
    export("tiny", path, to="gguf", method="none")
    return path


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("general.architecture", 7, "'general.architecture' must be a text, got 7"),
        ("tokenizer.ggml.tokens", [1, 2], "'tokenizer.ggml.tokens' must be a list of texts, got [1, 2]"),
        ("tokenizer.ggml.token_type", "x", "'tokenizer.ggml.token_type' must be a list of whole numbers, got 'x'"),
        ("tokenizer.ggml.token_type", [1], "tokenizer.ggml.token_type must have one entry a token, got 1 for"),
        ("llama.context_length", "x", "'llama.context_length' must be a whole number of at least 1, got 'x'"),
        ("llama.attention.head_count", 0, "'llama.attention.head_count' must be a whole number of at least 1, got 0"),
        ("llama.embedding_length", [1], "'llama.embedding_length' must be a whole number of at least 1, got [1]"),
        ("llama.attention.key_length", 0, "'llama.attention.key_length' must be a whole number of at least 1, got 0"),
        ("llama.rope.freq_base", 0.0, "'llama.rope.freq_base' must be a number above 0, got 0.0"),
        ("llama.rope.dimension_count", "x", "'llama.rope.dimension_count' must be a whole number of at least 1, got"),
        ("split.count", "x", "'split.count' must be a whole number of at least 1, got 'x'"),
        ("ropescale.origin", 7, "'ropescale.origin' must be a text, got 7"),
        ("ropescale.record", b"\xff", "'ropescale.record' must be text in UTF-8, got the byte 0xff"),
        ("general.name", b"a\xc3", "'general.name' must be text in UTF-8, got the byte 0xc3"),
    ],
)
def test_an_entry_of_another_kind_is_named(name: str, value: Any, said: str, pretrained: Path, tmp_path: Path) -> None:
    file = with_entry(pretrained, name, value, tmp_path / "odd.gguf")
    reads = [
        lambda: reading.read_facts(file),
        lambda: patch_gguf(file, tmp_path / "out.gguf", method="yarn", factor=2),
    ]
    refused = []
    for read in reads:
        try:
            read()
        except CheckpointError as error:
            refused.append(str(error))
        except RopescaleError:  # what is asked of this file besides
            continue
    assert refused
    for one in refused:
        assert one.startswith(f"{file}: ")
        assert said in one


@pytest.mark.parametrize(("outtype", "largest"), [("f16", 1e-3), ("bf16", 5e-3), ("q8_0", 1e-1)])
@pytest.mark.parametrize("method", often(["yarn", "by_parts"], "yarn"))
def test_other_types_of_weights_stay_within_their_own_rounding(
    outtype: str, largest: float, method: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    done = export("tiny", path, to="gguf", method=method, factor=4, outtype=outtype)
    assert outtype.upper() in str(done)
    verdict = verify(path, engine="llama.cpp")
    assert verdict.tolerance == largest
    assert verdict.rounded
    assert verdict.exact, str(verdict)
    assert f"exact to its rounding in llama.cpp ({method} x4): " in str(verdict)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == outtype.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["granite", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("method", often(["ntk", "yarn", "by_parts"], "yarn", "by_parts"))
def test_families_in_llama_cpp(name: str, method: str, tmp_path: Path) -> None:
    """Exact, or refused by name where llama.cpp has no divisors for the family."""
    source, path = checkpoint(tmp_path / "source", name), tmp_path / "model.gguf"
    if method == "by_parts" and name not in ("granite", "mistral"):
        with pytest.raises(ExportError, match=rf"^{name}: llama\.cpp reads no divisors for each pair for this arch"):
            export(source, path, to="gguf", method=method, factor=4)
        assert list(tmp_path.iterdir()) == [source]
        return
    export(source, path, to="gguf", method=method, factor=4)
    require_exact(path, "llama.cpp", str(source))


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "glm", "gpt_neox", "phi3", "starcoder2"])
def test_families_that_are_not_written_to_gguf_are_refused_by_name(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", name)
    with pytest.raises(ExportError, match=rf"^model type '{name}': not a family that is written to GGUF, got "):
        export(source, tmp_path / "model.gguf", to="gguf", method="yarn", factor=4)
    assert list(tmp_path.iterdir()) == [source]


def test_the_way_out_that_a_refused_family_is_told_holds(tmp_path: Path) -> None:
    """A file of Gemma 3 is refused by `patch_gguf` as well, so the sentence says which are taken."""
    source, path = checkpoint(tmp_path / "source", "gemma3_text"), tmp_path / "gemma3.gguf"
    with pytest.raises(ExportError, match="export to transformers or vllm, or use ") as refusal:
        export(source, tmp_path / "model.gguf", to="gguf", method="yarn", factor=4)
    taken = str(refusal.value).split("an architecture that patch_gguf takes: ")[1]
    assert "gemma3" not in taken.split(", ")
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_string("general.name", "empty")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ExportError, match=f"got 'gemma3'; these were: {taken}$"):
        patch_gguf(path, tmp_path / "scaled.gguf", method="yarn", factor=4)


def bytes_of(path: Path) -> dict[str, str]:
    return {
        tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest() + tensor.tensor_type.name
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize(
    ("method", "outtype"),
    [
        ("yarn", "q8_0"),
        ("by_parts", "f32"),
        pytest.param("yarn", "f32", marks=pytest.mark.slow),
        pytest.param("by_parts", "q8_0", marks=pytest.mark.slow),
    ],
)
def test_a_scaling_is_added_to_an_existing_file(method: str, outtype: str, tmp_path: Path) -> None:
    existing, path = tmp_path / "existing.gguf", tmp_path / "longer.gguf"
    export("tiny", existing, to="gguf", method="none", outtype=outtype)
    before = existing.read_bytes()
    done = patch_gguf(existing, path, method=method, factor=4)
    assert (done.serves, existing.read_bytes()) == (512, before)
    after = bytes_of(path)
    after.pop("rope_freqs.weight", None)
    assert after == bytes_of(existing)
    verdict = verify(path, engine="llama.cpp", reference="tiny")
    assert verdict.exact, str(verdict)
    assert verdict.checks[-1].length == 512 - 16
    kept = [
        {
            name: field.contents()
            for name, field in gguf.GGUFReader(file).fields.items()
            if name.startswith("tokenizer")
        }
        for file in (existing, path)
    ]
    assert kept[0] == kept[1]


def test_a_file_that_is_scaled_already_is_refused(tmp_path: Path) -> None:
    export("tiny", tmp_path / "once.gguf", to="gguf", method="by_parts", factor=4)
    with pytest.raises(
        ExportError, match=r"once\.gguf: positions must be as pretrained, got rope_freqs\.weight; take"
    ):
        patch_gguf(tmp_path / "once.gguf", tmp_path / "twice.gguf", method="yarn", factor=4)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\x00\x00\x00rest")
    for name in ("half.gguf", "missing.gguf"):
        with pytest.raises(CheckpointError, match=rf"{name}: must (be a whole GGUF file|hold all that)"):
            patch_gguf(tmp_path / name, tmp_path / "out.gguf", method="yarn", factor=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.gguf"]


TEXTS = [
    "Hello, world",
    "a  b\n\n1 23\tx",
    "don't I'LL we're",
    "naïve café 你好 🙂",
    "x" * 50,
    "  leading",
    "trailing  ",
]


def test_the_tokenizer_is_the_model_s(tmp_path: Path) -> None:
    export("tiny", tmp_path / "model.gguf", to="gguf", method="none")
    engine, tokenizer = InProcess(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(TINY)
    for text in TEXTS:
        assert engine.tokenized(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_sentencepiece_tokenizer_is_written_too(tmp_path: Path) -> None:
    """BPE over SentencePiece's alphabet, with bytes for what it does not know, as Llama 2 and Mistral have it."""
    folder = checkpoint(tmp_path / "source")
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special[:3], show_progress=False)
    texts = [
        (Path(ropescale.__file__).parent / name).read_text()
        for name in ("families/reading.py", "families/entries.py", "patching.py")
    ]
    backend.train_from_iterator(texts, trainer)
    trained = json.loads(backend.to_str())
    # the trainer knows no bytes: they come after the special tokens, as SentencePiece puts them
    words = [
        word for word in sorted(trained["model"]["vocab"], key=trained["model"]["vocab"].get) if word not in special
    ]
    trained["model"]["vocab"] = {word: place for place, word in enumerate([*special, *words])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    export(folder, tmp_path / "model.gguf", to="gguf", method="yarn", factor=4)
    engine, tokenizer = InProcess(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(folder)
    for text in ("def patched(model): return model", "a  b", "naïve 你好 🙂"):
        assert engine.tokenized(text) == tokenizer(text, add_special_tokens=False).input_ids
    assert verify(tmp_path / "model.gguf", engine="llama.cpp", reference=folder).exact


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "source")
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    with pytest.raises(
        ExportError, match=r"^tokenizer: byte-level BPE, or BPE over SentencePiece's alphabet, is what "
    ):
        export(folder, tmp_path / "model.gguf", to="gguf", method="none")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"source: must hold a tokenizer, got "):
        export(folder, tmp_path / "model.gguf", to="gguf", method="none")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
