"""The site: what it is made from is whole, its links lead somewhere, and it loads nothing from elsewhere."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from programs import script

from ropescale import list_methods

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_when_to_take_it_is_said_of_every_method_and_of_nothing_else() -> None:
    said = yaml.safe_load((ROOT / "docs" / "methods.yaml").read_text(encoding="utf-8"))
    assert list(said) == list_methods()
    for name, sentences in said.items():
        assert list(sentences) == ["take", "leave"], name
        for sentence in sentences.values():
            assert len(sentence.split()) >= 4, f"{name}: {sentence}"
            assert not sentence.endswith("."), name  # the page ends it
    named = set(re.findall(r"`([a-z_0-9]+)`", str(said)))
    assert named <= set(list_methods()), "what is named in them is a method"


def test_the_page_of_a_method_has_what_it_came_to_head_to_head() -> None:
    """Read from the figures by themselves: what was run stands there, and nothing of others."""
    told = json.loads((ROOT / "docs" / "results" / "head-to-head.json").read_text(encoding="utf-8"))
    page = script("site_pages").head_to_head
    shown = 0
    methods = [row for row in told["summary"] if row["method"] != "unpatched"]
    for name in list_methods():
        lines = [line for line in page(name).splitlines() if re.match(r"\| (un)?(searched|trained)", line)]
        rows = [row for row in methods if row["method"] == name]
        assert len(lines) == len(rows), name
        for row in rows:
            (line,) = [line for line in lines if line.startswith(f"| {row['stage']}, x{row['factor']},")]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found, asked = row["passkeys"]
            assert float(cells[1]) == pytest.approx(row["perplexity_beyond"], abs=0.006)
            assert cells[3].split(" of ")[0] == str(row["rank_text"])
            assert cells[4].startswith(f"{100 * found / asked:.0f} % (")
            assert cells[5].split(" of ")[0] == str(row["rank_passkeys"])
            shown += 1
    assert shown == len(methods) >= 80


def outside_code(text: str) -> str:
    """A page without what stands in code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """The ids of a page: of headings, as GitHub and the site's Markdown both make them, and those that it names."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles, named = (
        re.findall(r"^#+ (.*)$", prose, re.MULTILINE),
        re.findall(r'^<a id="([\w-]+)"></a>$', prose, re.MULTILINE),
    )
    return {*named} | {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def dead_links(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of one."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(text)):
        where, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        at = (page.parent / where).resolve() if where else page
        if not at.exists() or (anchor and at.suffix == ".md" and anchor not in anchors(at.read_text("utf-8"))):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_a_text_is_dead_in_the_repository(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_found() -> None:
    text = "[a](docs/search.md) [b](docs/nowhere.md) [c](docs/search.md#nowhere) [d](docs/search.md#what-is-searched)"
    assert dead_links(ROOT / "README.md", text) == ["docs/nowhere.md", "docs/search.md#nowhere"]


class Read(html.parser.HTMLParser):
    """What a page leads to, what it loads, and the ids in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.leads.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append(found["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in found:
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, of a copy of the repository."""
    copy = tmp_path_factory.mktemp("site") / "copy"
    left_out = shutil.ignore_patterns(".*", "build", "out", "tests", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    subprocess.run([sys.executable, "scripts/site_pages.py"], cwd=copy, check=True)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", "build/mkdocs.yml"],
        cwd=copy,
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING -" not in built.stderr
    return copy / "build" / "site"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_no_link_in_it_is_dead(site: Path) -> None:
    pages = {page: Read(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert {f"methods/{name}.html" for name in list_methods()} <= {str(page.relative_to(site)) for page in pages}
    dead, looked_at = [], 0
    for page, read in pages.items():
        for target in read.leads + read.loads:
            parts = urlsplit(target)
            if parts.scheme or page.name == "404.html":  # that page is served from the root of a host
                continue
            at = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            looked_at += 1
            if not at.is_file() or (parts.fragment and at in pages and unquote(parts.fragment) not in pages[at].ids):
                dead.append(f"{page.relative_to(site)}: {target}")
    assert dead == []
    assert looked_at > 5000


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert [target for target in Read(text).loads if urlsplit(target).scheme not in ("", "data")] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8"))
