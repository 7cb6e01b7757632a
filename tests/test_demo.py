"""The demo: perplexity by position, windows, passkey scoring, and cells that survive a kill."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError, UnknownMethodError
from ropescale.evals import demo, perplexity, results
from ropescale.evals.passkey import passkey_samples
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.evals.texts import Document, sample

DOCUMENTS = sample()[:3]
YARN = Arm(method="yarn", factor=2.0)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("tiny"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """A small Llama with random weights and the embedded tokenizer, on disk."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(checkpoint):
    return LlamaForCausalLM.from_pretrained(checkpoint)


@pytest.fixture
def options(checkpoint):
    return demo.Options(model=str(checkpoint), methods=("yarn",), depths=(0.0, 1.0), windows=4, samples=2)


def run(options, folder):
    return demo.run(options, folder, "ropescale demo", DOCUMENTS)


def without_seconds(found):
    return {key: {k: v for k, v in cell.items() if k != "seconds"} for key, cell in found.cells.items()}


# perplexity by position


def test_losses_equal_the_naive_computation_and_transformers_own_loss(model):
    windows = torch.randint(1024, (5, 40), generator=torch.Generator().manual_seed(1))
    losses = perplexity.loss_by_position(model, windows, batch_size=2)
    with torch.no_grad():
        output = model(input_ids=windows, labels=windows)
    naive = -output.logits[:, :-1].log_softmax(-1).gather(-1, windows[:, 1:, None]).squeeze(-1)
    assert losses.shape == (5, 39)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, naive, atol=1e-6, rtol=1e-6)
    assert losses.mean().item() == pytest.approx(output.loss.item(), rel=1e-6)


@pytest.mark.parametrize("positions", [1, 7, 38, 39, 40])
def test_chunks_of_any_size_give_the_same_losses(model, monkeypatch, positions):
    windows = torch.randint(1024, (3, 40), generator=torch.Generator().manual_seed(2))
    whole = perplexity.loss_by_position(model, windows, batch_size=3)
    monkeypatch.setattr(perplexity, "CHUNK_ELEMENTS", 3 * 1024 * positions)
    torch.testing.assert_close(perplexity.loss_by_position(model, windows, batch_size=3), whole, atol=1e-6, rtol=0)


def test_a_loss_depends_on_the_tokens_before_it_only(model):
    windows = torch.randint(1024, (2, 40), generator=torch.Generator().manual_seed(3))
    whole = perplexity.loss_by_position(model, windows, batch_size=2)
    torch.testing.assert_close(
        perplexity.loss_by_position(model, windows[:, :20], batch_size=2), whole[:, :19], atol=1e-5, rtol=0
    )


def test_bucket_edges_are_eighths_of_the_original_length_and_end_at_the_window():
    assert perplexity.bucket_edges(128, 256) == list(range(0, 257, 16))
    assert perplexity.bucket_edges(128, 100) == [0, 16, 32, 48, 64, 80, 96, 100]
    assert perplexity.bucket_edges(100, 130) == [0, 12, 25, 37, 50, 62, 75, 87, 100, 112, 125, 130]
    assert perplexity.bucket_edges(4, 6) == [0, 1, 2, 3, 4, 5, 6]


def test_buckets_hold_every_loss_once():
    losses = torch.arange(2 * 9, dtype=torch.float32).reshape(2, 9)
    sums, counts = perplexity.by_bucket(losses, [0, 4, 8, 10])
    assert counts == [8, 8, 2]
    assert sums == [losses[:, :4].sum(), losses[:, 4:8].sum(), losses[:, 8:].sum()]


def test_windows_never_cross_documents_and_do_not_overlap(tokenizer):
    documents = [
        Document(name="b", text="b word " * 200),
        Document(name="a", text="a word " * 200),
        Document(name="short", text="too short"),
    ]
    windows = perplexity.cut_windows(documents, tokenizer, length=50, limit=5)
    assert [(name, rows.shape) for name, rows in windows] == [("a", (3, 50)), ("b", (2, 50))]
    for (name, rows), text in zip(windows, ("a word " * 200, "b word " * 200), strict=True):
        ids = tokenizer(text)["input_ids"]
        assert rows.flatten().tolist() == ids[: rows.numel()], name


def test_a_beginning_of_sequence_token_leads_every_window(tokenizer):
    class Leading:
        bos_token_id = tokenizer.bos_token_id

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    [(_, rows)] = perplexity.cut_windows(DOCUMENTS[:1], Leading(), length=50, limit=2)
    ids = tokenizer(DOCUMENTS[0].text)["input_ids"]
    assert rows.tolist() == [[0, *ids[:49]], [0, *ids[49:98]]]


def test_windows_that_no_document_holds_are_refused(tokenizer):
    with pytest.raises(InvalidArgumentError) as caught:
        perplexity.cut_windows(DOCUMENTS, tokenizer, length=10**6, limit=1)
    assert str(caught.value) == (
        "windows: at least one document must hold 1000000 tokens, got 3 documents that do not; ask for shorter lengths"
    )


# passkeys


def test_passkeys_count_as_found_where_greedy_decoding_prints_the_answer(tokenizer):
    class Oracle:
        """Predicts the token that follows, except in the prompts that it gets wrong at one place."""

        device = torch.device("cpu")

        def __init__(self, wrong):
            self.wrong = wrong

        def forward(self, input_ids):
            raise NotImplementedError

        def __call__(self, input_ids, use_cache):
            following = input_ids.roll(-1, dims=1)
            for row, place in self.wrong.items():
                following[row, place] += 1
            return type("Output", (), {"logits": torch.nn.functional.one_hot(following, 1025).float()})

    asked = passkey_samples(tokenizer, length=128, depths=[0.5], count=4, seed=0)
    answer = asked[0].answer_length
    assert demo.passkeys_found(Oracle({}), asked, batch_size=4) == 4
    assert demo.passkeys_found(Oracle({1: -2, 3: -answer - 1}), asked, batch_size=4) == 2
    assert demo.passkeys_found(Oracle({1: -1, 2: -answer - 2}), asked, batch_size=4) == 4


def test_keeping_few_logits_changes_nothing(model, tokenizer):
    model.eval()
    asked = passkey_samples(tokenizer, length=128, depths=[0.0, 1.0], count=3, seed=0)
    with torch.no_grad():
        ids = torch.tensor([one.input_ids for one in asked])
        predicted = model(ids).logits.argmax(-1)
    expected = sum(
        torch.equal(predicted[i, -one.answer_length - 1 : -1], ids[i, -one.answer_length :])
        for i, one in enumerate(asked)
    )
    assert demo.passkeys_found(model, asked, batch_size=4) == expected


# a run


def test_every_arm_reads_the_same_positions_and_the_unpatched_arm_reads_furthest(options, tmp_path):
    found = run(replace(options, methods=("none", "yarn", "linear"), factors=(2.0, 1.5)), tmp_path)
    assert [arm.label for arm in found.arms()] == ["none", "yarn x1.5", "linear x1.5", "yarn x2", "linear x2"]
    assert not any(found.missing(arm) for arm in found.arms())
    assert found.settings.lengths == (128, 192, 256)
    assert [found.settings.reach(arm) for arm in found.arms()] == [256, 192, 192, 256, 256]
    for cell in found.cells.values():
        if cell["task"] == "perplexity":
            windows = dict(found.settings.documents)[cell["document"]]
            assert sum(cell["count"]) == windows * (cell["edges"][-1] - 1)
    groups = results.table(found)
    assert [[row.arm.label for row in rows] for rows in groups.values()] == [
        ["none", "yarn x1.5", "linear x1.5"],
        ["none", "yarn x2", "linear x2"],
    ]


def test_the_model_is_unpatched_inside_the_unpatched_arm(options, tmp_path, checkpoint, tokenizer):
    found = run(options, tmp_path)
    windows = perplexity.cut_windows(DOCUMENTS, tokenizer, length=256, limit=4)
    losses = torch.cat(
        [perplexity.loss_by_position(LlamaForCausalLM.from_pretrained(checkpoint), rows, 1) for _, rows in windows]
    )
    assert found.perplexity(UNPATCHED, 0, 256) == pytest.approx(losses.double().mean().exp().item(), rel=1e-5)
    assert found.perplexity(UNPATCHED, 0, 128) == pytest.approx(losses[:, :128].double().mean().exp().item(), rel=1e-5)
    assert found.perplexity(YARN, 0, 256) != found.perplexity(UNPATCHED, 0, 256)


KILLED = """
import os, signal, sys
from pathlib import Path
from ropescale.evals import demo, results
from ropescale.evals.texts import sample

append, left = results.Results.append, [int(sys.argv[3])]

def append_then_die(self, cell):
    append(self, cell)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

results.Results.append = append_then_die
options = demo.Options(model=sys.argv[1], methods=("yarn",), depths=(0.0, 1.0), windows=4, samples=2)
demo.run(options, Path(sys.argv[2]), "ropescale demo", sample()[:3])
"""


def test_a_run_killed_midway_goes_on_and_ends_with_the_same_results(options, tmp_path):
    command = [sys.executable, "-c", KILLED, options.model, str(tmp_path / "killed"), "7"]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    lines = (tmp_path / "killed" / "results.jsonl").read_bytes()
    assert lines.count(b"\n") == 7

    resumed = run(options, tmp_path / "killed")
    whole = run(options, tmp_path / "whole")
    assert (tmp_path / "killed" / "results.jsonl").read_bytes().startswith(lines)
    assert without_seconds(resumed) == without_seconds(whole)
    assert without_seconds(results.read(tmp_path / "killed")) == without_seconds(whole)
    assert len(resumed.sessions) == 2


def test_a_torn_last_line_is_dropped_with_a_warning_and_run_again(options, tmp_path):
    whole = run(options, tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="the last line is cut off and is dropped; its cell counts as not run$"):
        resumed = run(options, tmp_path)
    assert without_seconds(resumed) == without_seconds(whole)
    assert [json.loads(line) for line in path.read_text().splitlines()]
    assert len(results.read(tmp_path).cells) == len(whole.cells)


def test_a_finished_folder_takes_another_method_without_running_the_rest_again(options, tmp_path):
    run(options, tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    found = run(replace(options, methods=("yarn", "ntk")), tmp_path)
    after = (tmp_path / "results.jsonl").read_bytes()
    assert after.startswith(before)
    added = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert {cell["method"] for cell in added} == {"ntk"}
    assert len(added) == len(found.settings.keys(YARN))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed (0), got 1"),
        ({"samples": 3}, "samples (2), got 3"),
        ({"lengths": (256,)}, "lengths ((128, 256)), got (256,)"),
        ({"depths": (0.5,)}, "depths ((0.0, 1.0)), got (0.5,)"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(options, tmp_path, change, text):
    run(options, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError) as caught:
        run(replace(options, **change), tmp_path)
    assert str(caught.value) == (
        f"--output: results in {str(tmp_path)!r} must be of the same {text}; choose another folder with --output"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_weights_under_the_same_name_are_refused(options, tmp_path, monkeypatch):
    run(options, tmp_path)
    monkeypatch.setattr(demo, "_digest", lambda tensors: "0" * 16)
    with pytest.raises(InvalidArgumentError, match=r"must be of the same weights \('[0-9a-f]{16}'\), got '0{16}'; "):
        run(options, tmp_path)


def test_results_without_their_run_json_are_refused(options, tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(InvalidArgumentError) as caught:
        run(options, tmp_path)
    assert str(caught.value) == (
        f"--output: a folder with results.jsonl must hold its run.json too, got {str(tmp_path)!r}; "
        f"choose another folder with --output"
    )


def test_a_damaged_line_in_the_middle_is_named(options, tmp_path):
    run(options, tmp_path)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(InvalidArgumentError) as caught:
        results.read(tmp_path)
    assert str(caught.value) == (
        f"results: line 2 of {str(path)!r} must be a cell as a demo wrote it, got b'{{broken'; "
        f"remove the line and run again"
    )


def test_a_damaged_run_json_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": {}}')
    with pytest.raises(InvalidArgumentError) as caught:
        results.read(tmp_path)
    assert str(caught.value) == (
        f"results: {str(tmp_path / 'run.json')!r} must be as a demo wrote it, got TypeError; choose another folder"
    )


def test_a_method_the_model_refuses_ends_the_run_before_anything_is_written(options, tmp_path):
    with pytest.raises(InvalidArgumentError):
        run(replace(options, methods=("yarn", "abf")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_saved_patched_is_refused(options, tmp_path, checkpoint):
    import ropescale

    patched = ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=2)
    patched.save_pretrained(tmp_path / "saved")
    with pytest.raises(InvalidArgumentError) as caught:
        run(replace(options, model=str(tmp_path / "saved")), tmp_path / "out")
    assert str(caught.value) == (
        f"demo: model must be unpatched, since the demo patches it, got {str(tmp_path / 'saved')!r}, which was saved "
        f"patched; name the checkpoint that it was made from"
    )


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"windows": 0}, "demo: windows must be at least 1, got 0; leave it out for the default"),
        ({"samples": 0}, "demo: samples must be at least 1, got 0; leave it out for the default"),
        ({"seed": -1}, "demo: seed must be at least 0, got -1; leave it out for the default"),
        ({"factors": ()}, "demo: factors must hold at least one factor, got none; leave it out"),
        ({"depths": ()}, "demo: depths must hold at least one depth, got none; leave it out"),
        (
            {"factors": (0.5,)},
            "demo: factors must be finite and at least 1, got 0.5; a factor is target length / original length",
        ),
        (
            {"factors": (float("inf"),)},
            "demo: factors must be finite and at least 1, got inf; a factor is target length / original length",
        ),
        ({"lengths": (1,)}, "demo: lengths must be at least 2 tokens, got 1; a window needs a token to predict"),
    ],
)
def test_wrong_options_are_refused(wrong, text):
    with pytest.raises(InvalidArgumentError) as caught:
        demo.Options(model="tiny", **wrong)
    assert str(caught.value) == text


def test_an_unknown_method_is_refused_before_the_model_is_loaded():
    with pytest.raises(UnknownMethodError, match="unknown method 'yran'; did you mean 'yarn'"):
        demo.Options(model="no such model", methods=("yran",))


def test_lengths_beyond_the_largest_factor_are_refused(options, tmp_path):
    with pytest.raises(InvalidArgumentError) as caught:
        run(replace(options, lengths=(512,)), tmp_path)
    assert str(caught.value) == (
        "demo: lengths must be at most the largest factor x the original length (256), got 512; "
        "ask for a larger factor or for shorter lengths"
    )


# what the cells say


def settings_of(lengths, original_length):
    return results.Settings(
        model="m",
        weights="",
        dtype="float32",
        original_length=original_length,
        lengths=lengths,
        depths=(0.5,),
        samples=10,
        seed=0,
        documents=(("d", 1),),
        texts="",
        versions=(),
    )


def cells_of(arm, edges, losses, passkeys):
    """The cells of an arm with one loss per bucket and the found passkeys per length."""
    name = {"method": arm.method, "factor": arm.factor}
    return [
        {"task": "record", **name, "record": None},
        {"task": "perplexity", **name, "document": "d", "edges": edges, "nll_sum": losses, "count": [1] * len(losses)},
        *(
            {"task": "passkey", **name, "length": n, "depth": 0.5, "samples": 10, "correct": found}
            for n, found in passkeys.items()
        ),
    ]


def results_of(*arms):
    settings = settings_of((100, 200, 400), 100)
    cells = [cell for arm in arms for cell in cells_of(*arm)]
    return results.Results(Path("nowhere"), settings, [], {results.key_of(cell): cell for cell in cells})


EDGES = [0, 100, 200, 400]
NONE = (UNPATCHED, EDGES, [1.0, 2.0, 3.0], {100: 10, 200: 0, 400: 0})


def test_stretches_double_from_the_original_length_and_are_quarters_below_twice_it():
    settings = settings_of((12288,), 8192)
    assert results.stretch_edges(settings, 12288) == [8192, 10240, 12288]
    assert results.stretch_edges(settings, 40000) == [8192, 16384, 32768, 40000]
    assert results.stretch_edges(settings, 16384) == [8192, 16384]
    assert results.stretch_edges(settings, 4096) == [4096]


def test_the_verdict_names_the_arm_that_reads_furthest_and_its_cost():
    yarn = Arm(method="yarn", factor=4.0)
    ntk = Arm(method="ntk", factor=4.0)
    found = results_of(
        NONE,
        (yarn, EDGES, [1.05, 1.1, 1.2], {100: 10, 200: 10, 400: 9}),
        (ntk, EDGES, [1.0, 1.1, 1.5], {100: 10, 200: 9, 400: 9}),
    )
    groups = results.table(found)
    assert [row.keeps for row in groups[4.0]] == [100, 400, 200]
    assert groups[4.0][1].change == pytest.approx(2.718281828459045**0.05 - 1)
    assert groups[4.0][1].passkeys_beyond == (19, 20)
    assert results.verdict(groups, found.settings) == (
        "yarn x4 keeps its perplexity over the longest context: 400 tokens, 4 times the original length, at +5.1% "
        "inside it; the unpatched model keeps it to 100. Passkeys found beyond the original length: 95% against 0%."
    )


def test_of_arms_that_keep_as_far_the_cheaper_one_inside_is_named():
    first, second = Arm(method="yarn", factor=4.0), Arm(method="ntk", factor=4.0)
    kept = {100: 10, 200: 10, 400: 10}
    found = results_of(NONE, (first, EDGES, [1.1, 1.0, 1.0], kept), (second, EDGES, [1.0, 1.2, 1.2], kept))
    assert results.verdict(results.table(found), found.settings).startswith("ntk x4 keeps its perplexity over")


def test_the_verdict_says_so_where_no_arm_helps():
    yarn = Arm(method="yarn", factor=4.0)
    found = results_of(NONE, (yarn, EDGES, [1.0, 1.3, 1.0], {100: 10, 200: 8, 400: 10}))
    groups = results.table(found)
    assert groups[4.0][1].keeps == 100
    assert results.verdict(groups, found.settings) == (
        "No arm keeps its perplexity further than the unpatched model, which does to 100 tokens of 400."
    )


def test_an_unfinished_unpatched_arm_is_refused_and_an_unfinished_other_is_left_out():
    yarn = Arm(method="yarn", factor=4.0)
    partial = (yarn, EDGES, [1.0, 1.0, 1.0], {100: 10})
    groups = results.table(results_of(NONE, partial))
    assert [row.arm for rows in groups.values() for row in rows] == [UNPATCHED]
    assert results.verdict(groups, settings_of((100, 200, 400), 100)) == (
        "Unpatched, the model keeps its perplexity to 100 tokens of 400."
    )
    with pytest.raises(InvalidArgumentError) as caught:
        results.table(results_of((*NONE[:3], {100: 10})))
    assert str(caught.value) == (
        "results: all cells of the unpatched model must be finished, got 2 missing in 'nowhere'; "
        "run the same demo again to go on"
    )


def test_appending_writes_one_whole_line(tmp_path):
    found = results.start(tmp_path, settings_of((100,), 100), {"command": "c"})
    cell = {"task": "record", "method": "none", "factor": 1.0, "record": None}
    found.append(cell)
    assert (tmp_path / "results.jsonl").read_text() == json.dumps(cell) + "\n"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
