"""Every option and argument of every verb changes something, or is refused in a sentence: a walk over the parsers.

What `ropescale train RECIPE` takes besides is walked by test_train_options.py (its own) and test_asked.py
(Trainer's).
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evaluations import write_evaluation
from families import config_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from servers import llama_server

import ropescale
from ropescale import cli, conversation
from ropescale.adapters import save_adapter
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.evals import grid
from ropescale.serving.comparison import Row
from ropescale.serving.readings import MEANT, Meaning, Reading

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@dataclass(frozen=True)
class Case:
    """What is added to a command, and what then is another."""

    given: str  # the option's value, and whatever it goes with; of an argument what stands in its place
    base: str = ""  # the command that it is added to, where it is not that of the verb
    refused: str = ""  # what the sentence says where it is refused, which is not what its value is for


# Names in braces are made by the fixture `things`. The first words of a command are the arguments of its verb.
EVAL = "{scaled}"
PICTURE = "{scaled} --original-length 128 --factor 4 --output a.svg"
EXPORT = "{plain} DST --to transformers --method yarn --factor 4"
GGUF = "{plain} a.gguf --to gguf --method yarn --factor 4"
TALK = "{talking} --prompt 'the river' --max-new-tokens 24"
LONGER = f"{TALK} --method yarn --factor 4"
SERVER = "{url} --reference {plain} --method yarn --factor 4"
TWO_FOLDERS = "{results} {other_results}"
FLAGS = "{plain} --for axolotl --method yarn --factor 4"
BASE = {
    "demo": "",
    "eval": EVAL,
    "recommend": "{plain} --target-length 512",
    "methods": "",
    "inspect": "{scaled}",
    "doctor": "{plain}",
    "rescale": "{scaled} DST --existing replace --original-length 128 --factor 4",
    "explain": "{scaled} --original-length 128 --methods yarn --factor 4 --output a.html",
    "plot": PICTURE,
    "search": "{scaled} --existing replace --original-length 128 --factor 4",
    "fit": "{scaled} --existing replace --original-length 128 --factor 2 --windows 1",
    "train": "pose --model tiny --data passkey --max-documents 40",
    "merge": "{adapter} DST",
    "report": "{results}",
    "export": EXPORT,
    "verify-export": "{exported} --engine transformers --lengths 40,200 --steps 3",
    "verify-server": SERVER,
    "flags": FLAGS,
    "memory": "{scaled} --length 512",
    "chat": TALK,
}
GRID = {
    "methods": Case("ntk"),
    "factors": Case("8"),
    "lengths": Case("64"),
    "depths": Case("0.5"),
    "samples": Case("3"),
    "seed": Case("7"),
    "dtype": Case("bfloat16"),
    "device": Case("cpu:0"),
    "output": Case("elsewhere"),
}
PICTURED = {
    "model": Case("{plain}"),
    "methods": Case("ntk"),
    "factor": Case("8"),
    "length": Case("1024", "{scaled} --original-length 128 --output a.svg"),
    "original_length": Case("256"),
    "existing": Case("compose"),
    "layers": Case("all", "{two} --output a.svg"),
    "output": Case("b.svg"),
}
# Of a model that is loaded here, and not by an evaluation
LARGE = {
    "device_map": Case("""'{"model": "cpu", "lm_head": "disk"}'"""),
    "quantization": Case("bnb-8bit"),
    "revision": Case("main", refused="--revision: is of a hub id"),
    "attention": Case("eager"),
}
CASES: dict[str, dict[str, Case]] = {
    "demo": {"model": Case("{plain}"), **GRID},
    "eval": {
        "model": Case("{plain}"),
        **GRID,
        "device_map": Case("auto"),
        "quantization": Case("bnb-8bit"),
        "revision": Case("main"),
        "attention": Case("eager"),
        "original_length": Case("256"),
        "existing": Case("compose"),
        "layers": Case("full"),
        "tasks": Case("needle"),
        "target_length": Case("200"),
        "windows": Case("2"),
        "stride": Case("0.25"),
        "texts": Case("speeches"),
        "evaluator": Case("smollm2", "{scaled} --tasks longppl"),
        "include_path": Case("tasks", "{scaled} --tasks hellaswag"),
        "limit": Case("5"),
        "backend": Case("vllm", "{plain} --methods none"),
        "engine_args": Case("""'{"tensor_parallel_size": 2}'""", "{plain} --backend vllm"),
        "chat": Case(""),
        "knobs": Case("""'{"yarn": {"beta_fast": 16}}'"""),
        "metadata": Case("""'{"squad": "dev.json"}'"""),
        "adapters": Case("nowhere", refused="nowhere"),
        "report_to": Case("tensorboard", refused="--report-to: must be one of"),
        "dry_run": Case(""),
        "task_folder": Case(""),
        "quick": Case(""),
        "budget": Case("5"),
        "until": Case("decided"),
    },
    "recommend": {
        "model": Case("{scaled}"),
        "target_length": Case("1024"),
        "budget": Case("90s"),
        "texts": Case("speeches"),
        "methods": Case("ntk"),
        "serve_with": Case("vllm"),
        "device_map": Case("auto"),
        "quantization": Case("bnb-8bit"),
        "revision": Case("main"),
        "attention": Case("eager"),
        "original_length": Case("256"),
        "existing": Case("compose"),
        "layers": Case("full"),
        "seed": Case("7"),
        "dtype": Case("bfloat16"),
        "device": Case("cpu:0"),
        "output": Case("elsewhere"),
    },
    "methods": {},
    "inspect": {"model": Case("{plain}"), "original_length": Case("256")},
    "doctor": {"path": Case("{bare}")},
    "rescale": {
        "source": Case("{plain}"),
        "destination": Case("ELSEWHERE"),
        "method": Case("ntk"),
        "factor": Case("8"),
        "target_length": Case("1024", "{scaled} DST --existing replace --original-length 128"),
        "original_length": Case("256"),
        "existing": Case("compose"),
        "layers": Case("full"),
        "knobs": Case("""'{"beta_fast": 16}'"""),
        "link": Case(""),
    },
    "explain": {
        **{name: Case(*(one.replace("svg", "html") for one in (it.given, it.base))) for name, it in PICTURED.items()},
        "knobs": Case("""'{"yarn": {"temperature": "llama4"}}'"""),
    },
    "plot": PICTURED,
    "search": {
        "model": Case("{plain}"),
        "factor": Case("8"),
        "target_length": Case("1024", "{plain}"),
        "space": Case("critical"),
        "method": Case("ntk_mixed", "{plain} --factor 4 --space knobs --method yarn"),
        "ranges": Case("""'{"beta_fast": [8, 64]}'""", "{plain} --factor 4 --space knobs --method yarn"),
        "objective": Case("needle"),
        "weights": Case("""'{"needle": 2}'"""),
        "budget": Case("5m"),
        "candidates": Case("24"),
        "data": Case("sample"),
        "windows": Case("2"),
        "needles": Case("2"),
        "batches": Case("3"),
        "held_out": Case("8"),
        "prefixes": Case("4,16"),
        "seed": Case("3"),
        "original_length": Case("256"),
        "existing": Case("compose"),
        "layers": Case("full"),
        "log_n": Case(""),
        "temperature": Case("llama4:0.3"),
        "dtype": Case("bfloat16"),
        "device": Case("meta", refused="--device: must be one that torch"),
        **LARGE,
        "output": Case("elsewhere"),
    },
    "fit": {
        "model": Case("{plain}"),
        "method": Case("self_extend"),
        "factor": Case("4"),
        "target_length": Case("512", "{plain}"),
        "original_length": Case("64"),
        "existing": Case("compose"),
        "layers": Case("full"),
        "knobs": Case("""'{"beta_fast": 16}'"""),
        "rule": Case("llama4"),
        "objective": Case("needle"),
        "data": Case("sample"),
        "windows": Case("2"),
        "dtype": Case("bfloat16"),
        "device": Case("meta", refused="--device: must be one that torch"),
        **LARGE,
    },
    "train": {
        "recipe": Case("lora"),
        "options": Case("", refused="RECIPE must be given"),
        "list": Case(""),
        "dry_run": Case(""),
    },
    "merge": {
        "adapter": Case("{other_adapter}"),
        "destination": Case("ELSEWHERE"),
        "base": Case("{plain}", "{moved_adapter} DST"),
        "dtype": Case("bfloat16"),
    },
    "report": {
        "folder": Case("{other_results}"),
        "other": Case("{more_results}", TWO_FOLDERS),
        "target_length": Case("64"),
        "arms": Case("none=linearx2", TWO_FOLDERS),
        "output": Case("elsewhere", TWO_FOLDERS),
    },
    "export": {
        "source": Case("{other}"),
        "destination": Case("ELSEWHERE"),
        "to": Case("mlx", "{plain} DST --method yarn --factor 4 --to transformers"),
        "method": Case("ntk", "{plain} DST --to transformers --factor 4"),
        "factor": Case("8", "{plain} DST --to transformers --method yarn"),
        "target_length": Case("1024", "{plain} DST --to transformers --method yarn"),
        "original_length": Case("256"),
        "knobs": Case("""'{"beta_fast": 16}'"""),
        "existing": Case("replace", "{scaled} DST --to transformers --method yarn --factor 4 --original-length 128"),
        "layers": Case("full"),
        "log_n": Case("", f"{EXPORT} --lossy"),
        "temperature": Case("llama4:0.3", f"{EXPORT} --lossy"),
        "adapter": Case("{adapter}", "{plain} DST --to transformers"),
        "outtype": Case("q8_0", GGUF),
        "patch_gguf": Case("", GGUF.replace("{plain}", "{gguf}")),
        "lossy": Case("", "{plain} DST --to transformers --method dynamic_ntk --factor 4"),
    },
    "verify-export": {
        "path": Case("{other_exported}"),
        "engine": Case("llama.cpp", "{exported_gguf} --lengths 40 --steps 3 --engine transformers"),
        "reference": Case("{other}"),
        "adapter": Case("{adapter}"),
        "lengths": Case("64"),
        "steps": Case("2"),
        "seed": Case("3"),
        "tolerance": Case("1e-12"),
    },
    "verify-server": {
        "url": Case("http://127.0.0.1:9", refused="must be a server that answers"),
        "reference": Case("{scaled}", "{url} --reference {plain} --method none"),
        "method": Case("ntk", "{url} --reference {plain} --factor 4"),
        "factor": Case("8", "{url} --reference {plain} --method yarn"),
        "target_length": Case("1024", "{url} --reference {plain} --method yarn"),
        "original_length": Case("64"),
        "knobs": Case("""'{"beta_fast": 16}'"""),
        "existing": Case("compose", "{url} --reference {scaled} --method yarn --factor 2"),
        "layers": Case("some", refused="--layers: must be one of"),
        "served": Case("another", refused="--model: must be one of the models"),
        "api_key": Case("NOWHERE", refused="--api-key: must be the name of an environment variable"),
        "timeout": Case("0", refused="--timeout: must be"),
        "lengths": Case("40"),
        "tolerance": Case("0", refused="--tolerance: must be"),
        "json": Case(""),
    },
    "flags": {
        "source": Case("{two}", FLAGS),
        "framework": Case("verl", "{plain} --for unsloth --method yarn --factor 4"),
        "method": Case("ntk"),
        "factor": Case("8", "{plain} --for axolotl --method yarn"),
        "target_length": Case("1024", "{plain} --for axolotl --method yarn"),
        "original_length": Case("64"),
        "knobs": Case("""'{"beta_fast": 16}'"""),
        "existing": Case("compose", "{scaled} --for axolotl --method yarn --factor 2"),
        "layers": Case("all", "{two} --for axolotl --method yarn --factor 2"),
        "json": Case(""),
    },
    "memory": {
        "model": Case("{two}"),
        "length": Case("1024"),
        "rows": Case("2"),
        "dtype": Case("float32"),
    },
    "chat": {
        "model": Case("{other_talking}"),
        "method": Case("linear", LONGER),
        "factor": Case("8", LONGER),
        "target_length": Case("1024", f"{TALK} --method yarn"),
        "original_length": Case("256", LONGER),
        "existing": Case("compose", "{scaled_talking} --prompt river --max-new-tokens 8 --method yarn --factor 2"),
        "layers": Case("full", LONGER),
        "knobs": Case("""'{"beta_fast": 8, "beta_slow": 4}'""", LONGER),
        "prompt": Case("'one, two, three and 4'"),
        "max_new_tokens": Case("3"),
        "temperature": Case("5"),
        "seed": Case("3", f"{TALK} --temperature 5"),
        "dtype": Case("bfloat16"),
        "device": Case("meta", refused="--device: must be one that torch"),
    },
}
# What lets the code of a checkpoint run shows on one with code alone: tests/house/test_code_in_files.py
APART = {"help", "trust_remote_code"}
BEGIN = conversation.Conversation.__init__


def parsers() -> dict[str, Any]:
    return next(action for action in cli._parser()._actions if action.dest == "name").choices


def actions(verb: str) -> dict[str, Any]:
    return {action.dest: action for action in parsers()[verb]._actions if action.dest not in APART}


def test_every_verb_is_walked() -> None:
    assert set(parsers()) == set(BASE) == set(CASES)


@pytest.mark.parametrize("verb", sorted(parsers()))
def test_every_option_has_a_value_here(verb: str) -> None:
    assert set(actions(verb)) == set(CASES[verb])


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Checkpoints, adapters, exports and results, by the names that commands have for them."""
    place = tmp_path_factory.mktemp("things")
    made: dict[str, str] = {}

    def copied(name: str, **entries: Any) -> Path:
        folder = Path(shutil.copytree(resolve("tiny"), place / name))
        config = json.loads((folder / "config.json").read_text()) | entries
        (folder / "config.json").write_text(json.dumps(config))
        made[name] = str(folder)
        return folder

    def changed(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.self_attn.q_proj.weight"] *= 3
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    linear = {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "max_position_embeddings": 512,
    }
    copied("plain")
    changed(copied("other"))
    copied("scaled", **linear)
    for name, entries in (("talking", {}), ("other_talking", {}), ("scaled_talking", linear)):
        folder = copied(name, **entries)
        tokenizer = read_tokenizer(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
    changed(place / "other_talking")
    bare = copied("bare")
    (bare / "tokenizer.json").unlink()
    config_of("gemma3_text").save_pretrained(place / "two")
    made["two"] = str(place / "two")
    for name, value in (("adapter", 0.02), ("other_adapter", 0.05)):
        model = ropescale.patch(ropescale.load(made["plain"]), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        for key, one in adapted.named_parameters():
            if "lora_B" in key:
                one.data.fill_(value)
        made[name] = str(save_adapter(adapted, place / name))
    moved = Path(shutil.copytree(made["adapter"], place / "moved_adapter"))
    said = (moved / "adapter_config.json").read_text()
    assert made["plain"] in said
    (moved / "adapter_config.json").write_text(said.replace(made["plain"], str(place / "away")))
    made["moved_adapter"] = str(moved)
    for name, given in (
        ("exported", f"{made['plain']} {place / 'exported'} --to transformers --method yarn --factor 4"),
        ("other_exported", f"{made['plain']} {place / 'other_exported'} --to transformers --method ntk --factor 4"),
        ("gguf", f"{made['plain']} {place / 'gguf.gguf'} --to gguf --method none"),
        ("exported_gguf", f"{made['plain']} {place / 'exported.gguf'} --to gguf --method yarn --factor 4"),
    ):
        assert cli.main(["export", *given.split()]) == 0
        made[name] = given.split()[1]
    server = llama_server(Path(made["exported_gguf"]))
    made["url"] = server.listening_address
    for name, lengths in (("results", (64, 128)), ("other_results", (64, 128, 256)), ("more_results", (128, 256))):
        made[name] = str(write_evaluation(place / name, lengths=lengths))
    yield made
    del server


Outcome = tuple[int, str, str, dict[str, Any]]


class Walk:
    """Commands in folders of their own, each carried out once."""

    def __init__(self, things: dict[str, str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
        self.things, self.place, self.monkeypatch, self.capsys = things, place, monkeypatch, capsys

    def outcome(self, verb: str, command: str) -> Outcome:
        """The code, what is said, and every file with its content and its number of links.

        Of `eval`, `recommend`, `demo`, `search`, `fit` and `train` what reaches the piece that evaluates or trains; of
        `chat` also the model.
        """
        folder = self.place / str(len(list(self.place.iterdir())))
        folder.mkdir()
        theirs = folder / "given"
        if verb == "report":  # which writes into the folder of results
            given, *others = shlex.split(command)
            shutil.copytree(self._filled(given), theirs)
            command = shlex.join(["given", *others])
        seen: list[Any] = []
        self._watched(seen)
        self.monkeypatch.chdir(folder)
        code = cli.main([verb, *(self._filled(one) for one in shlex.split(command))])
        said = self.capsys.readouterr()
        files = {
            str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_nlink)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }
        return code, said.out.partition("next:")[0], said.err, {**files, "seen": seen}

    def _filled(self, word: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: self.things[found[1]], word)

    def _watched(self, seen: list[Any]) -> None:
        patched = self.monkeypatch.setattr
        patched(grid, "run", lambda *arguments: seen.append(arguments[:2]) or stop())
        patched(grid, "print_cost", lambda options, console, folder: seen.append("a dry run"))
        patched(grid, "fitted", lambda options, minutes, folder: seen.append(minutes) or ("", options))
        patched("ropescale.cli.demo._trained", lambda *arguments: ())
        patched("ropescale.recommend.recommend", lambda *arguments: seen.append(arguments[:2]) or stop())
        patched("ropescale.serving.verification._computed", lambda *arguments: computed(seen, *arguments))
        from ropescale.recipes import dry_run, train

        patched(train, "run", lambda recipe, command: seen.append(recipe) or stop())
        patched(dry_run, "dry_run", lambda recipe, command, console: seen.append((recipe, "a dry run")))

        def sought(model: Any, tokenizer: Any, **asked: Any) -> None:
            del asked["command"]
            seen.append((*held(model), asked))
            stop()

        patched("ropescale.search.search", sought)

        def fitted(model: Any, tokenizer: Any, rule: str, **asked: Any) -> None:
            seen.append((*held(model), rule, asked))
            stop()

        patched("ropescale.search.fit_temperature", fitted)

        def noted(self: Any, *given: Any, **more: Any) -> None:
            BEGIN(self, *given, **more)
            seen.append((self.model.dtype, self.model.device, ropescale.record(self.model)))

        patched(conversation.Conversation, "__init__", noted)


def held(model: Any) -> tuple[Any, ...]:
    """What is loaded, in which types, where, and how its attention is computed."""
    types = {parameter.dtype for parameter in model.parameters()}
    return model.name_or_path, types, getattr(model, "hf_device_map", None), model.config._attn_implementation


def computed(seen: list[Any], model: Any, meaning: Meaning, reading: Reading, passages: Any, said: Any) -> list[Row]:
    """In the place of a reading that is run: what the server says, if it is the one that is meant."""
    spectrum = None if reading.spectrum is None else reading.spectrum.inv_freq.tolist()
    seen.append((meaning.method, reading.says, spectrum, [passage.ids for passage in passages]))
    off = float(reading.name != MEANT)
    return [{token: value - off for token, value in one.logprobs.items()} for one in said]


def stop() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def settled() -> dict[tuple[str, str], Outcome]:
    return {}


@pytest.fixture
def walk(things: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Walk:
    return Walk(things, tmp_path, monkeypatch, capsys)


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb in CASES for name in [*CASES[verb], ""]])
def test_an_option_changes_something_or_is_refused(
    verb: str, name: str, walk: Walk, settled: dict[tuple[str, str], Outcome]
) -> None:
    case = CASES[verb].get(name, Case(""))
    base = case.base or BASE[verb]
    if (verb, base) not in settled:
        settled[verb, base] = walk.outcome(verb, base)
    before = settled[verb, base]
    if not name:
        assert before[0] in (0, 130), before
        assert walk.outcome(verb, base) == before, "what differs from run to run proves nothing"
        return
    action = actions(verb)[name]
    if action.option_strings:
        added = f"{action.option_strings[0]} {case.given}"
        command = f"{added} {base}" if verb == "train" else f"{base} {added}"  # whose recipe has the rest
    else:
        words = shlex.split(base)
        positional = [one.dest for one in actions(verb).values() if not one.option_strings]
        words[positional.index(name)] = case.given
        command = "" if name == "options" else shlex.join(words)
    after = walk.outcome(verb, command)
    if case.refused:
        assert after[0] == 2
        assert case.refused in after[2]
        assert len(after[2].splitlines()) == 1
        return
    assert after[0] in (0, 1 if verb in ("doctor", "verify-export", "verify-server") else 0, 130), after[2]
    assert after != before, f"{verb} {name} was accepted and changed nothing"
