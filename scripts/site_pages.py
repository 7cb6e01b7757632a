"""What the site is built from: docs/ and the pages that are made from what says it already, in build/site-pages.

A page for each method of the registry (its docstring, knobs, picture, figures, and docs/methods.yaml), pages from the
READMEs of tasks, CONTRIBUTING and the changelog, the notebooks, and README as the front page. Links between files of
the repository become links between pages. None of it is a plugin, so that another builder of sites can take it.

    python scripts/site_pages.py        # `make docs` runs it, and MkDocs after it
"""

import ast
import dataclasses
import inspect
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ropescale import get_method, list_methods
from ropescale.explain.readings import Reading, readings
from ropescale.geometry import Geometry
from ropescale.methods import Method
from ropescale.pages.chart import Axis, Chart, Curve, Mark, drawn, legend

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build" / "site-pages"
SOURCE = ROOT / "build" / "site-source"  # the packages as the wheel has them, for mkdocstrings
SETTINGS = ROOT / "build" / "mkdocs.yml"

# What the pictures of methods show: a Llama with heads of 128 elements, at four times its 4,096 tokens
GEOMETRY = Geometry(rotary_dim=128, theta=10_000, original_length=4096, layers=32)
FACTOR = 4.0
HEADS = 32
# Knobs without a default, for the picture, which says what they are given
PICTURED: dict[str, dict[str, Any]] = {
    "abf": {"theta": 500_000},
    "learned": {"max_length": 16_384},
    "longrope": {"long_factor": [1 + 3 * pair / 63 for pair in range(64)]},
    "proportional": {"partial_rotary_factor": 0.5},
}
STAGES = ("untrained", "searched", "trained")  # of the comparison of all methods
UNPATCHED = "unpatched"  # a row of that
KINDS = {
    "rotation": "Frequencies",
    "late": "In attention",
    "without": "In the place of rotation",
}

# Files of the repository that have a page of another name, or lie outside docs/
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "ropescale/checkpoints/tiny/README.md": "checkpoints/tiny.md",
    "evals/tasks": "tasks/index.md",
    **{
        f"evals/tasks/{path.parent.name}/README.md": f"tasks/{path.parent.name}.md"
        for path in sorted((ROOT / "evals" / "tasks").glob("*/README.md"))
    },
    # beside a page of the same name in HTML
    **{
        path.relative_to(ROOT).as_posix(): f"results/{path.parent.name}/report-text.md"
        for path in sorted((ROOT / "docs" / "results").glob("*/report.md"))
    },
    **{
        path.relative_to(ROOT).as_posix(): f"notebooks/{path.stem}.md"
        for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    },
}
ORIGINS = {page: origin for origin, page in PAGES.items()}


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        at = path.relative_to(ROOT).as_posix()
        if path.is_file() and path.suffix != ".yaml" and at not in PAGES:
            written = TREE / at.removeprefix("docs/")
            written.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, written)
            if path.suffix == ".md":
                written.write_text(
                    rehomed(path.read_text(encoding="utf-8"), at.removeprefix("docs/")), encoding="utf-8"
                )
    for page, text in made():
        written = TREE / page
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(rehomed(text, page), encoding="utf-8")
    source()
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    navigation(settings["nav"])
    SETTINGS.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def made() -> Iterator[tuple[str, str]]:
    """The pages that are made, each with its text."""
    for origin, page in PAGES.items():
        path = ROOT / origin
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            yield page, notebook(text) if path.suffix == ".ipynb" else text
    yield "tasks/index.md", tasks_page()
    yield "methods/index.md", methods_page()
    for name in list_methods():
        yield f"methods/{name}.md", method_page(name)


def source() -> None:
    """The packages side by side; "Example:" is "Examples:", which griffe reads as a session of Python."""
    for room, within in (("ropescale", "."), ("evals", "evals"), ("recipes", "recipes")):
        for path in (ROOT / room).rglob("*.py"):
            written = SOURCE / "ropescale" / within / path.relative_to(ROOT / room)
            written.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            written.write_text(re.sub(r"^( +)Example:$", r"\1Examples:", text, flags=re.MULTILINE), encoding="utf-8")


def navigation(nav: list[Any]) -> None:
    """Put the pages that are made where they belong."""
    parts = {name: pages for part in nav if isinstance(part, dict) for name, pages in part.items()}
    parts["Methods"][:0] = [
        "methods/index.md",
        *({KINDS[kind]: [f"methods/{name}.md" for name in names]} for kind, names in by_kind().items()),
    ]
    tasks = [page for page in PAGES.values() if page.startswith("tasks/")]
    parts["Evaluate"].append({"Tasks": tasks})


def rehomed(markdown: str, page: str) -> str:
    """The text of a page, its links outside code resolved from where the text stands in the repository."""
    origin = ORIGINS.get(page, f"docs/{page}")

    def resolved(target: str) -> str:
        return os.path.normpath(PurePosixPath(origin).parent / target)

    def home(at: str) -> str | None:
        return PAGES.get(at) or (at.removeprefix("docs/") if at.startswith("docs/") else None)

    def named(found: re.Match[str]) -> str:
        """What has no page is named instead."""
        at = resolved(found["target"])
        there = "://" not in found["target"] and home(at) is None and (ROOT / at).exists()
        return f"{found['text']} (`{at}`)" if there else found[0]

    def moved(found: re.Match[str]) -> str:
        to = None if "://" in found["target"] else home(resolved(found["target"]))
        return f"]({os.path.relpath(to, PurePosixPath(page).parent)}{found['anchor'] or ''})" if to else found[0]

    target = r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        block
        if block.startswith("```")
        else with_methods(re.sub(target, moved, re.sub(rf"\[(?P<text>[^\[\]]*){target}", named, block)), page)
        for block in blocks
    )


def with_methods(markdown: str, page: str) -> str:
    """A row of a table that begins with the name of a method leads to its page."""
    to = os.path.relpath("methods", PurePosixPath(page).parent)

    def linked(found: re.Match[str]) -> str:
        return f"| [`{found[1]}`]({to}/{found[1]}.md) |" if found[1] in list_methods() else found[0]

    return re.sub(r"^\| `(\w+)` \|", linked, markdown, flags=re.MULTILINE)


# Methods


def by_kind() -> dict[str, list[str]]:
    """The methods, by what they act on."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in list_methods():
        bases = {base.__name__ for base in get_method(name).__mro__}
        kinds["rotation" if "FixedMethod" in bases else "without" if "WithoutRotation" in bases else "late"].append(
            name
        )
    return kinds


def advice() -> dict[str, dict[str, str]]:
    """When to take each method and when not: docs/methods.yaml."""
    return dict(yaml.safe_load((ROOT / "docs" / "methods.yaml").read_text(encoding="utf-8")))


def readme_rows() -> dict[str, tuple[str, str]]:
    """What README's tables say of each method, and of its source."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|$", text, flags=re.MULTILINE)
    return {name: (does.strip(), source.strip().replace("](docs/", "](../")) for name, does, _, source in rows}


def methods_page() -> str:
    """All methods side by side."""
    lines = ["# Methods", ""]
    said, rows = advice(), readme_rows()
    lines += [
        "One page each: what it does, its knobs, its picture, its figures, when to take it and when not. "
        "Which of them suits a model: [the guide](../guide.md).",
        "",
    ]
    for kind, names in by_kind().items():
        lines += [f"## {KINDS[kind]}", "", "| method | what it does | take it |", "|---|---|---|"]
        lines += [f"| [`{name}`]({name}.md) | {rows[name][0]} | {said[name]['take']} |" for name in names]
        lines.append("")
    return "\n".join(lines)


def method_page(name: str) -> str:
    """The page of one method."""
    kind, said = get_method(name), advice()[name]
    first, _, rest = docstring(kind).partition("\n\n")
    source = readme_rows()[name][1]
    parts = [
        f"# {name}",
        first,
        f"**Source:** {source}",
        "## When to take it, and when not",
        f"**Take it** {said['take']}.",
        f"**Leave it** {said['leave']}.",
        *(["## What it does", rest] if rest else []),
        "## Its picture",
        picture(name),
        "## Its figures",
        figures(name),
        "### Head to head",
        head_to_head(name),
        "## In engines",
        engines(name),
        "## Knobs",
        knob_table(name),
        "## Use it",
        used(name),
    ]
    return "\n\n".join(parts) + "\n"


def docstring(kind: type[Method]) -> str:
    """What a method says of itself, symbols of plain text kept from Markdown."""
    return re.sub(r"(?<=\w)\*(?=\w)", r"\\*", inspect.getdoc(kind) or "")


def picture(name: str) -> str:
    """What the rotation of the last query becomes: distances where they change, else wavelengths, else scores."""
    given = PICTURED.get(name, {})
    length = int(FACTOR * GEOMETRY.original_length)
    base, own = readings(GEOMETRY, [get_method(name)(factor=FACTOR, **given)], length=length, heads=HEADS)
    rotates = bool(own.view.inv_freq.any())
    what, chart = (
        distances(base, own)
        if rotates and not seen_as_it_is(own)
        else wavelengths(base, own)
        if rotates
        else scores(base, own)
    )
    knobs = ", ".join(f"`{knob}` {stated(value)}" for knob, value in given.items())
    caption = (
        f"{what} A model of {GEOMETRY.pairs} pairs, theta {GEOMETRY.theta:,.0f} and an original length of "
        f"{GEOMETRY.original_length:,} tokens, at {FACTOR:g} times that{', ' if knobs else ''}{knobs}; the query is "
        "the last."
    )
    lines = legend({"as pretrained": chart.curves[0], name: chart.curves[1]})
    said = re.sub(r"`(\w+)`", r"<code>\1</code>", escape(caption))
    return f'<figure class="picture">{lines}{drawn(chart)}<figcaption>{said}</figcaption></figure>'


def stated(value: Any) -> str:
    """A knob of a picture in words."""
    return f"from {value[0]:g} to {value[-1]:g}" if isinstance(value, list) else f"{value:,}"


def seen_as_it_is(reading: Reading) -> bool:
    """Whether every key is seen, at its own distance."""
    view = reading.view
    return bool(view.visible.all()) and bool((view.seen == view.distance).all())


def thinned(reading: Reading, values: Any) -> tuple[list[float], list[float]]:
    """Distances and values, as many as a picture shows; a nan where nothing is seen."""
    step = max(1, len(values) // 400)
    rows = zip(reading.view.distance, values, reading.view.visible, strict=True)
    shown = [(float(x), float(y) if see else math.nan) for x, y, see in list(rows)[::step]]
    return [x for x, _ in shown], [y for _, y in shown]


def distances(base: Reading, own: Reading) -> tuple[str, Chart]:
    """The distance that the rotation sees."""
    curves = []
    for series, reading in enumerate((base, own)):
        x, y = thinned(reading, reading.view.seen)
        curves.append(Curve(series=series, x=x, y=y))
    chart = Chart(
        label="Distance that the rotation sees against the true distance",
        curves=curves,
        x=Axis(label="true distance in tokens"),
        y=Axis(label="distance seen", limits=(0, 1.05 * max(curves[0].y))),
        marks=[Mark(at=GEOMETRY.original_length, word="original length", level=True)],
    )
    return (
        "The distance that the rotation sees, against the true one; where the line has a gap, nothing is seen.",
        chart,
    )


def wavelengths(base: Reading, own: Reading) -> tuple[str, Chart]:
    """Tokens that a pair takes for a turn."""
    same = bool((own.view.inv_freq == base.view.inv_freq).all())
    curves = [
        Curve(series=i, x=range(GEOMETRY.pairs), y=(2 * math.pi / one.view.inv_freq).tolist(), over=bool(i) and same)
        for i, one in enumerate((base, own))
    ]
    chart = Chart(
        label="Wavelength of each pair in tokens, on a logarithmic axis",
        curves=curves,
        x=Axis(label="pair"),
        y=Axis(label="tokens per turn", logarithmic=True),
        marks=[Mark(at=GEOMETRY.original_length, word="original length", level=True)],
    )
    sharper = own.view.attention_factor
    more = f" Cosines and sines are multiplied by {sharper:.3f} besides." if sharper != 1 else ""
    return f"How many tokens each pair takes for a turn; a pair that has none does not turn.{more}", chart


def scores(base: Reading, own: Reading) -> tuple[str, Chart]:
    """The score of like vectors, where nothing rotates."""
    curves = []
    for series, reading in enumerate((base, own)):
        x, y = thinned(reading, reading.view.score)
        curves.append(Curve(series=series, x=x, y=y))
    chart = Chart(
        label="Score of a query and a key of ones against their distance",
        curves=curves,
        x=Axis(label="distance in tokens"),
        y=Axis(label="score"),
    )
    learned = "" if own.view.biased else " What it learns begins at nothing and is not in the picture."
    return f"The score of a query of ones with a key of ones: nothing rotates.{learned}", chart


def figures(name: str) -> str:
    """What was measured of it: untrained on the embedded checkpoint, and head to head where that was run."""
    cells = json.loads((ROOT / "docs" / "results" / "arms.json").read_text(encoding="utf-8"))
    head = ["| arm | passkeys at the target | perplexity beyond | within | change within |", "|---|---|---|---|---|"]
    rows = []
    for cell in ("x4, none", "x4, log_n", "x8, none", "x8, log_n"):
        factor, _, rule = cell.partition(", ")
        told = f"{factor}, log-n" if rule == "log_n" else factor
        if name in cells[cell]:
            rows.append(arm_row(f"`{name}` {told}", cells[cell][name]))
    if not rows:
        return (
            "It was not measured untrained: [the table of all arms](../results/README.md) holds those that need no "
            "training and no knob without a default."
        )
    unpatched = [arm_row(f"unpatched, to {factor}", cells[f"{factor}, none"]["none"]) for factor in ("x4", "x8")]
    return "\n".join(
        [
            "Without training, on the embedded checkpoint (128 tokens): 210 passkeys of three seeds with the 95 % "
            "interval of their share, perplexity of held-out text beyond 128 tokens and within. "
            "[All methods](../results/README.md#every-untrained-arm-with-and-without-log-n)",
            "",
            *head,
            *rows,
            *unpatched,
        ]
    )


def arm_row(named: str, cell: dict[str, Any]) -> str:
    """One row of the table of untrained arms."""
    low, high = (100 * bound for bound in cell["interval"])
    found = f"{100 * cell['share']:.0f} % ({low:.0f} to {high:.0f})"
    change = f"{100 * (cell['change within'][0] - 1):+.1f} %" if cell["change within"] else ""
    return f"| {named} | {found} | {cell['perplexity beyond']:.2f} | {cell['perplexity within']:.2f} | {change} |"


def head_to_head(name: str) -> str:
    """What it came to against all others: a row for each stage and factor that was run."""
    told = json.loads((ROOT / "docs" / "results" / "head-to-head.json").read_text(encoding="utf-8"))
    rows = [row for row in told["summary"] if row["method"] == name]
    rows.sort(key=lambda row: (STAGES.index(row["stage"]), row["factor"]))
    if name in told["left_out"] and not rows:
        why = told["left_out"][name].replace("docs/results/training.md", "[trained](../results/training.md)")
        return f"It is not in [the comparison of all methods](../results/head-to-head.md): it {why}."
    if not rows:
        return "It is not in [the comparison of all methods](../results/head-to-head.md) yet."
    head = ["stage", "perplexity beyond", "against `yarn`", "rank", "passkeys at the target", "rank", "change within"]
    rows += [row for row in told["summary"] if row["method"] == UNPATCHED]
    fields = [[*head_to_head_row(row, told["summary"])] for row in rows]
    lines = [head, ["---"] * len(head), *fields]
    return "\n".join(
        [
            "On the embedded checkpoint, against all that were run at the same stage and factor: perplexity "
            "of held-out text beyond 128 tokens, passkeys at the target length, and what is lost within 128 tokens, "
            "with 95 % intervals, paired where two are compared. A rank is one more than the number of methods that "
            "are surely better. "
            "[How it was measured](../results/head-to-head.md)",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )


def head_to_head_row(row: dict[str, Any], summary: list[dict[str, Any]]) -> Iterator[str]:
    """The cells of one row; what was not compared is empty."""
    others = sum(one["stage"] == row["stage"] and one["factor"] == row["factor"] for one in summary)
    seeds = len(row["seeds"])
    found, asked = row["passkeys"]
    low, high = row["interval"]
    stage = UNPATCHED if row["method"] == UNPATCHED else row["stage"]
    yield f"{stage}, x{row['factor']:g}, {seeds} seed{'' if seeds == 1 else 's'}"
    yield f"{row['perplexity_beyond']:.2f}"
    yield "" if row["method"] == "yarn" or not row["against_yarn"] else changed(row["against_yarn"])
    yield f"{row['rank_text']} of {others}"
    yield f"{100 * found / asked:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    yield f"{row['rank_passkeys']} of {others}"
    yield changed(row["change_inside"]) if row["change_inside"] else ""


def changed(ratio: list[float]) -> str:
    """A ratio with its interval, as what it adds in percent."""
    middle, low, high = (round(100 * (one - 1), 1) + 0.0 for one in ratio)  # which has no -0
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def engines(name: str) -> str:
    """Its row of docs/exports.md."""
    lines = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8").splitlines()
    head = next(line for line in lines if line.startswith("| method | llama.cpp"))
    row = next((line for line in lines if line.startswith(f"| `{name}` |")), None)
    if row is None:
        return "It is not measured yet: [what engines compute](../exports.md)."
    cut = slice(2, -1)  # the first column is its name
    columns, cells = (line.split("|")[cut] for line in (head, row))
    return "\n".join(
        [
            "What an export computes in each, with the largest difference of a log-probability: "
            "[how it was measured](../exports.md).",
            "",
            f"|{'|'.join(columns)}|",
            "|" + "---|" * len(columns),
            f"|{'|'.join(cells)}|",
        ]
    )


def comments(kind: type[Method]) -> dict[str, str]:
    """The trailing comments of a method's fields, which say their units; of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("ropescale."):
            continue
        lines = inspect.getsource(base).splitlines()
        for node in ast.parse(inspect.getsource(base)).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno:
                comment = re.search(r"  # (.*)$", lines[node.end_lineno - 1])
                found[node.target.id] = comment[1] if comment else found.get(node.target.id, "")
    return found


def knob_table(name: str) -> str:
    """Its fields, with their defaults and what their comments say."""
    kind = get_method(name)
    said = comments(kind)
    rows = []
    for field in dataclasses.fields(kind):
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "" if missing else f"`{field.default!r}`"
        rows.append(f"| `{field.name}` | {default} | {said.get(field.name, '').replace('|', chr(92) + '|')} |")
    return "\n".join(["| knob | default | |", "|---|---|---|", *rows])


# What a command and a call are given where a method needs it, on the embedded checkpoint of 16 pairs
USED = {
    "abf": {"theta": 500_000},
    "learned": {"max_length": 512},
    "longrope": {"long_factor": [1, 1, 1, 1, 1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4, 4, 4, 4]},
    "proportional": {"partial_rotary_factor": 0.5},
}
RECIPES = {"nope": "drope"}  # of methods that are recalibrated, where it has another name


def used(name: str) -> str:
    """The call and the commands."""
    given = USED.get(name, {})
    knobs = "".join(f", {knob}={value!r}" for knob, value in given.items())
    option = f" \\\n    --knobs '{json.dumps({name: given})}'" if given else ""
    call = f'model = ropescale.load("tiny")\nropescale.patch(model, "{name}", factor=4{knobs})'
    command = f"ropescale eval tiny --methods {name} --factors 4 --quick --output out/{name}{option}"
    if name in by_kind()["without"]:
        recipe = RECIPES.get(name, name)
        command = f"ropescale train {recipe} --model tiny --output out/{name}        # it is of no use without"
    reason = "<!-- not run: takes long -->\n\n" if name in by_kind()["without"] else ""
    return f"```python\nimport ropescale\n\n{call}\n```\n\n{reason}```bash\n{command}\n```"


# Tasks


def notebook(text: str) -> str:
    """A notebook as a page: its cells, and what they printed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        said = "".join(cell["source"])
        parts.append(said if cell["cell_type"] == "markdown" else f"```python\n{said}\n```")
        printed = "".join(
            "".join(one.get("text", one.get("data", {}).get("text/plain", []))) for one in cell.get("outputs", [])
        )
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def tasks_page() -> str:
    """The tasks by the pages of their folders."""
    lines = ["# Tasks", "", "What `ropescale eval --tasks` measures: a page for each folder of tasks.", ""]
    for origin, page in PAGES.items():
        if page.startswith("tasks/") and page != "tasks/index.md":
            text = (ROOT / origin).read_text(encoding="utf-8")
            title = re.search(r"^# (.*)$", text, flags=re.MULTILINE)
            lines.append(f"- [{title[1] if title else Path(page).stem}]({Path(page).name})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
