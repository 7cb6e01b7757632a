"""What lies beside the weights of a checkpoint goes with them, and nothing else does."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import (
    IGNORED,
    TINY,
)

from ropescale import cli
from ropescale.export import export

pytestmark = IGNORED


def pooled(folder: Path) -> Path:
    """A checkpoint with the pooling of an embedding model."""
    shutil.copytree(TINY, folder)
    (folder / "1_Pooling" / "deep").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (folder / "1_Pooling" / "deep" / "more.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    return folder


BERT = "sentence_bert_config.json"
LINKS: dict[str, tuple[Callable[[Path, Path], object], bool]] = {
    "none": (lambda folder, mine: None, True),
    "a folder inside": (lambda folder, mine: (folder / "2_Dense").symlink_to("1_Pooling/deep"), True),
    "a file inside": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to("../modules.json"), True),
    "the pooling folder": (lambda folder, mine: (folder / "2_Dense").symlink_to(mine), False),
    "a folder in it": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to(mine), False),
    "a folder below": (lambda folder, mine: (folder / "1_Pooling" / "deep" / "x").symlink_to(mine), False),
    "a file in it": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to(mine / "diary.txt"), False),
    "a file below": (lambda folder, mine: (folder / "1_Pooling" / "deep" / "x").symlink_to(mine / "diary.txt"), False),
    "a file beside": (
        lambda folder, mine: (folder / BERT).symlink_to(mine / "diary.txt"),
        False,
    ),
    "nothing": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to("nowhere"), False),
    "itself": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to("x"), False),
    "what is above it": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to(".."), False),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_of_a_pooling_folder_stay_within_the_checkpoint(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, inside = LINKS[case]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    source = pooled(tmp_path / "source")
    plant(source, mine)
    given = ["export", str(source), str(tmp_path / "out"), "--to", "transformers", "--method", "yarn", "--factor", "4"]
    assert cli.main(given) == (0 if inside else 2)
    if not inside:
        said = capsys.readouterr().err
        assert "which leads out of it, to nothing, or in a circle; replace it by what it stands for" in said
        assert not (tmp_path / "out").exists()
        return
    written = {str(one.relative_to(tmp_path / "out")): one for one in (tmp_path / "out").rglob("*") if one.is_file()}
    assert {"modules.json", "1_Pooling/config.json", "1_Pooling/deep/more.json"} <= written.keys()
    assert not any(one.is_symlink() or "diary" in one.read_text(errors="replace") for one in written.values())
    assert ("2_Dense/more.json" in written) == (case == "a folder inside")


def test_the_pooling_of_a_snapshot_in_the_hub_s_cache_is_brought(tmp_path: Path) -> None:
    """Where every file is a link to a blob."""
    plain, snapshot = pooled(tmp_path / "plain"), tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in plain.rglob("*") if one.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    export(snapshot, tmp_path / "out", to="transformers", method="yarn", factor=4)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"pooling_mode": "mean"}'
