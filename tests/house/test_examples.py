"""The examples in the docstrings of the public names: what they show is what happens."""

import doctest
from pathlib import Path

import pytest

import ropescale
from ropescale.methods import base

PUBLIC = sorted(set(ropescale.__all__) - {"__version__"})
SLOW = {"train": pytest.mark.slow}


def examples(name: str) -> doctest.DocTest:
    """The session of a docstring, which imports what it uses itself."""
    text = getattr(ropescale, name).__doc__
    return doctest.DocTestParser().get_doctest(text, {}, name, None, 0)


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in PUBLIC])
@pytest.mark.filterwarnings("ignore")
def test_an_example_gives_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))  # what an example registers is gone after it
    session = examples(name)
    assert session.examples, f"{name} has no example"
    said: list[str] = []
    done = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(session, out=said.append)
    assert done.failed == 0, "".join(said)
