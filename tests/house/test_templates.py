"""Chat templates of somebody else that do not end are refused."""

from pathlib import Path

import pytest
from attacks import TINY
from peft import LoraConfig, get_peft_model

import ropescale
from ropescale import cli, templates
from ropescale.adapters import save_adapter
from ropescale.contents import read_tokenizer
from ropescale.errors import CheckpointError


@pytest.fixture(autouse=True)
def adapter(request: pytest.FixtureRequest) -> None:
    """An adapter for `merge`, where a test has a folder of its own."""
    if "with_code" in request.fixturenames and "tmp_path" in request.fixturenames:
        model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_adapter(adapted, request.getfixturevalue("tmp_path") / "adapter")


# Chat templates

ENDLESS = {
    "loops within loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "a text of a billion letters": "{{ ('x' * 99999999999)|length }}",
    "a width of a billion": "{{ '%99999999999d' % 1 }}",
    "marked as a reply": "{% generation %}{{ ('x' * 99999999999)|length }}{% endgeneration %}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_that_does_not_end_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    tokenizer = read_tokenizer(TINY)
    tokenizer.chat_template = ENDLESS[case]
    with pytest.raises(CheckpointError, match=r"^theirs: the chat template must write two turns within 1 seconds and"):
        templates.require_ending(tokenizer, "theirs")


SOUND = [
    "{% for one in messages %}{{ bos_token }}{{ one.role }}: {{ one['content']|trim }}{% endfor %}",
    "{{ raise_exception('no system message') }}",
    "{% generation %}{{ messages|tojson(indent=2) }}{% endgeneration %}{{ strftime_now('%d') }}",
    "{% for one in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}",
    "{% no template",
    None,
]


@pytest.mark.parametrize("text", SOUND)
def test_a_template_that_ends_is_left_to_those_who_use_it(text: str | None) -> None:
    tokenizer = read_tokenizer(TINY)
    tokenizer.chat_template = text
    templates.require_ending(tokenizer, "theirs")


@pytest.mark.parametrize(
    "verb", ["chat {} --prompt hello", "eval {} --chat --methods none --tasks passkey --output {}/a"]
)
def test_no_verb_uses_one(
    verb: str,
    theirs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    (theirs / "chat_template.jinja").write_text(ENDLESS["loops within loops"])
    assert cli.main(verb.format(theirs, tmp_path).split()) == 2
    assert "the chat template must write two turns within" in capsys.readouterr().err


def test_no_room_asks_transformers_for_a_config_or_tokenizer_by_itself() -> None:
    """One place passes on whether code of a checkpoint may run."""
    known = {"contents.py", "gguf_llama.py"}  # the second reads the embedded model's source
    rooms = [Path(ropescale.__file__).parent / room for room in (".", "../evals", "../recipes")]
    for file in {file for room in rooms for file in room.resolve().rglob("*.py")}:
        text = file.read_text()
        for call in ("AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained("):
            lines = [line for line in text.splitlines() if call in line and '"' not in line]
            assert not lines or file.name in known, f"{file}: {lines}"
