"""What holds of the house as a whole: who may import whom, what is public, what is named where."""

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ropescale
from ropescale import get_method, list_methods
from ropescale.evals.tasks import base
from ropescale.export import ENGINES, Engine
from ropescale.families.catalogue import CATALOGUE, LOADED_WHOLE
from ropescale.methods import FixedMethod
from ropescale.methods.late import LengthDependent

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ropescale"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BESIDE = ("evals", "recipes")  # rooms at the top of the repository, which the wheel holds under ropescale
SHIPPED = sorted([*SOURCES, *(path for room in BESIDE for path in (ROOT / room).rglob("*.py"))])

# From the bottom up. A module imports from floors below its own, and from no other module of its floor.
FLOORS = [
    ["ropescale.version", "ropescale.errors"],
    [
        "ropescale.checks",
        "ropescale.console",
        "ropescale.files",
        "ropescale.templates",
        "ropescale.terminal",
        "ropescale.trust",
    ],
    [
        "ropescale.destinations",
        "ropescale.devices",
        "ropescale.geometry",
        "ropescale.limits",
        "ropescale.listing",
        "ropescale.memory",
        "ropescale.outside",
        "ropescale.registry",
        "ropescale.shards",
        "ropescale.temperature",
    ],
    ["ropescale.failures", "ropescale.spelling"],
    ["ropescale.pages"],
    ["ropescale.spectrum"],
    ["ropescale.methods.base"],
    ["ropescale.methods.late"],
    ["ropescale.methods.groups", "ropescale.methods.interpolation"],
    # every method file
    [f"ropescale.methods.{kind}" for kind in ("embedding", "nope", "rotation", "score")],
    ["ropescale.methods"],
    ["ropescale.records"],
    ["ropescale.families"],
    ["ropescale.cards", "ropescale.request", "ropescale.wrappers"],
    ["ropescale.injection"],
    ["ropescale.extension"],
    ["ropescale.patching"],
    ["ropescale.checkpoints", "ropescale.heads", "ropescale.ranking"],
    ["ropescale.contents"],
    ["ropescale.adapter_files", "ropescale.checkpoint"],
    ["ropescale.doctor", "ropescale.loading", "ropescale.rescaling"],
    ["ropescale.digest", "ropescale.merging"],
    ["ropescale.adapter_bases"],
    ["ropescale.adapters", "ropescale.conversation"],
    ["ropescale.explain"],
    ["ropescale.export"],
    ["evals"],
    ["ropescale.frameworks", "ropescale.serving"],
    ["ropescale.search"],
    ["recipes"],
    ["ropescale.recommend"],
    ["ropescale.cli"],
    ["ropescale.__main__"],
]
# Rooms with several files for one purpose, which may import one another
ROOMS = (
    "evals",
    "recipes",
    "ropescale.checkpoints",
    "ropescale.cli",
    "ropescale.doctor",
    "ropescale.explain",
    "ropescale.export",
    "ropescale.families",
    "ropescale.frameworks",
    "ropescale.injection",
    "ropescale.pages",
    "ropescale.recommend",
    "ropescale.search",
    "ropescale.serving",
)
TRANSFORMERS_FROM = "ropescale.families"
# Optional packages, and the rooms of ropescale/ that may name them
ELSEWHERE = {
    "accelerate": ("recipes", "evals", "ropescale.search"),
    "cmaes": ("ropescale.search",),
    "datasets": ("recipes", "evals"),
    "lm_eval": ("recipes", "evals"),
    "matplotlib": ("ropescale.explain",),
    "pyarrow": ("recipes", "evals"),
    "ringmaster": ("recipes",),
    "wonderwords": ("evals",),
    "peft": ("recipes", "evals", "ropescale.adapter", "ropescale.export", "ropescale.merging"),
}


def module_of(path: Path) -> str:
    """The dotted name by which the repository knows a file; evals/ and recipes/ stand beside ropescale/."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, as the names say it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are written in full, so that a reader can search for them"
            assert node.module
            # a name that is itself a module counts as an import of that module
            found |= {
                f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else node.module
                for alias in node.names
            }
    return {beside(name) for name in found}


def beside(name: str) -> str:
    """The name in the repository of a module that the wheel holds under ropescale."""
    return re.sub(rf"^ropescale\.({'|'.join(BESIDE)})\b", r"\1", name)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*beside(name).split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def floor_of(module: str) -> int:
    """How high up a module lives: the floor with the longest name that it falls under."""
    under = [
        (len(name), height)
        for height, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert under, f"{module} lives on no floor: add it to FLOORS, in its place"
    return max(under)[1]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


shipped = pytest.mark.parametrize("path", SHIPPED, ids=named)
inside = pytest.mark.parametrize("path", SOURCES, ids=named)


@shipped
def test_imports_go_down_only(path: Path) -> None:
    module = module_of(path)
    if module == "ropescale":
        return  # the front door names every floor, and loads each on first use: see the test of torch below
    own = floor_of(module)
    for imported in imports_of(path):
        if imported.split(".")[0] not in ("ropescale", *BESIDE) or imported == "ropescale":
            continue
        neighbours = any(module.startswith(room) and imported.startswith(room) for room in ROOMS)
        assert floor_of(imported) < own or neighbours, f"{module} imports {imported}, which is not below it"


def test_the_house_has_no_more_floors_than_are_named() -> None:
    assert {floor_of(module_of(path)) for path in SHIPPED if module_of(path) != "ropescale"} == set(range(len(FLOORS)))


@pytest.mark.parametrize("name", ["errors", "version"])
def test_the_lowest_modules_import_nothing(name: str) -> None:
    assert imports_of(PACKAGE / f"{name}.py") == set()


def test_the_geometry_is_pure() -> None:
    assert imports_of(PACKAGE / "geometry.py") <= {"dataclasses", "math", "ropescale.checks", "ropescale.errors"}


def test_the_shared_mathematics_knows_torch_and_math_only() -> None:
    allowed = {"dataclasses", "math", "ropescale.errors", "ropescale.geometry", "torch"}
    assert imports_of(PACKAGE / "spectrum.py") <= allowed


# Rooms that name architectures of engines, which some families share their names with
NAMING_FAMILIES = (
    "ropescale.checkpoints.gguf_llama",
    "ropescale.export.engines",
    "ropescale.export.gguf",
    "ropescale.export.reads",
    "ropescale.families.catalogue",
)


def families_named(text: str) -> set[str]:
    """The families of the catalogue that the code of a module names in strings."""
    strings = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    return strings & (CATALOGUE.keys() | LOADED_WHOLE)


@shipped
def test_what_a_family_does_otherwise_is_said_in_its_row_alone(path: Path) -> None:
    if not module_of(path).startswith(NAMING_FAMILIES):
        assert families_named(path.read_text(encoding="utf-8")) == set()


def test_a_family_that_is_named_elsewhere_is_found() -> None:
    assert families_named('fits = config.model_type in {"phi3", "granite"} or kind == "emu3"') == {
        "emu3",
        "granite",
        "phi3",
    }


TASKS = {task.name for task in base.every()} | {name for group in base.groups() for name in group.members}
# The metric that loss tasks have in results, reports and training.json; a task is named by a comparison or in a call
METRIC = {"perplexity"}
# Rooms in which the word is another one
OTHERWISE = {
    "evals.tasks.base": {"position"},  # over what a figure is drawn
    "evals.report.terminal": {"perplexity"},  # in the columns of a table
    "ropescale.search": {"longppl", "needle", "position"},  # figures that candidates are judged by
    "recipes": {"passkey", "perplexity", "position"},  # figures of training.json and its page, and a source of rows
}


def tasks_named(text: str) -> set[str]:
    """The tasks of ours that the code of a module names: in strings, and the metric too where it stands for a task."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & (TASKS - METRIC)
        near = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        near += node.args if isinstance(node, ast.Call) else []
        inner = [one for many in near for one in (many.elts if isinstance(many, ast.Tuple | ast.List) else [many])]
        found |= {one.value for one in inner if isinstance(one, ast.Constant) and one.value in TASKS}
    return found


@shipped
def test_a_task_is_named_in_its_own_folder_alone(path: Path) -> None:
    module = module_of(path)
    if path.parent.parent != base.FOLDER:
        otherwise = {name for room, names in OTHERWISE.items() if module.startswith(room) for name in names}
        assert tasks_named(path.read_text(encoding="utf-8")) - otherwise == set()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('if task.name in ("needle", "passkey"): pass', "needle"),
        ('cells = findings.lengths(arm, "perplexity")', "perplexity"),
        ('curves = [one for one in tasks if one == "perplexity"]', "perplexity"),
        ('SOURCES = {"position": 1}', "position"),
        ('GROUPS = ("ruler_full",)', "ruler_full"),
    ],
)
def test_a_task_that_is_named_elsewhere_is_found(text: str, name: str) -> None:
    assert name in tasks_named(text)


ENGINE_FILES = {type(engine).__module__: engine for engine in ENGINES.values()}
OWN = {name for engine in ENGINES.values() for name in (engine.name, engine.called, engine.title)}
PACKAGES = {"gguf", "transformers", "Transformers"}  # of Python, which anybody may name
# An engine that is a backend of evaluation
BACKEND = (
    "evals.engine",
    "evals.bench",
    "evals.plan",
    "evals.served",
    "evals.served_engine",
    "ropescale.cli.eval",
)
ROLLOUTS = "ropescale.frameworks.verl"  # a training framework that is built on it


def engines_named(text: str) -> set[str]:
    """The engines that the code of a module names: in strings of their own, in options, in what is called by them."""
    tree = ast.parse(text)
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {node.body[0].value for node in scopes if node.body and isinstance(node.body[0], ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            found |= {node.value} & (OWN - PACKAGES)
            found |= {name for name in OWN if re.search(rf"--(to|engine) {re.escape(name)}\b", node.value)}
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        found |= {one.value for one in compared if isinstance(one, ast.Constant) and one.value in OWN}
        called = str(getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)).lower()
        found |= {name for name in OWN - PACKAGES if re.search(rf"{name.lower().replace('.', '_?')}", called)}
    return found


@shipped
def test_an_engine_is_named_in_its_own_file_alone(path: Path) -> None:
    module = module_of(path)
    named = engines_named(path.read_text(encoding="utf-8"))
    if module.startswith("ropescale.export.engines."):
        of_this = [engine for home, engine in ENGINE_FILES.items() if home.rpartition(".")[2] in module]
        named -= {name for engine in of_this for name in (engine.name, engine.called, engine.title)}
    elif module.startswith("ropescale.export.gguf"):  # whose format it is
        named -= {"gguf", "llama.cpp"}
    elif module in (*BACKEND, ROLLOUTS):
        named -= {"vllm", "vLLM"}
    if module != "ropescale.export.engines":  # the table of contents
        assert named == set()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('if to == "gguf": pass', "gguf"),
        ('def tried(): return engine not in ("mlx", name) or engine == "transformers"', "transformers"),
        ('TITLES = ("vLLM", 1)', "vLLM"),
        ('text = "ropescale export tiny out --to sglang"', "sglang"),
        ("run = mlx(path)", "mlx"),
        ("from ropescale.export import vllm", "vllm"),
        ("class LlamaCppServer: pass", "llama.cpp"),
    ],
)
def test_an_engine_that_is_named_elsewhere_is_found(text: str, name: str) -> None:
    assert name in engines_named(text)


CONTRACT = {
    name for kind in (FixedMethod, *LengthDependent.__mro__) for name in vars(kind) if not name.startswith("_")
}
SHARED = {"__init__", "base", "groups", "interpolation", "late"}  # of the methods' folders: files that hold no method
METHOD_FILES = sorted(
    (path for path in (PACKAGE / "methods").rglob("*.py") if path.stem not in SHARED), key=lambda path: path.stem
)
method_files = pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: path.stem)


@method_files
def test_a_method_file_imports_no_other_method(path: Path) -> None:
    below = {
        "ropescale.checks",
        "ropescale.errors",
        "ropescale.geometry",
        "ropescale.methods.base",
        "ropescale.methods.groups",
        "ropescale.methods.interpolation",
        "ropescale.methods.late",
        "ropescale.spectrum",
    }
    assert {name for name in imports_of(path) if name.startswith("ropescale")} <= below


@inside
def test_transformers_is_known_to_families_and_above_only(path: Path) -> None:
    module = module_of(path)
    if module == "ropescale" or floor_of(module) < floor_of(TRANSFORMERS_FROM):
        assert "transformers" not in {name.split(".")[0] for name in imports_of(path)}


@shipped
def test_optional_packages_stay_in_their_rooms(path: Path) -> None:
    module = module_of(path)
    for package in {name.split(".")[0] for name in imports_of(path)} & set(ELSEWHERE):
        assert module.startswith(ELSEWHERE[package]), f"{module} imports {package}"


def test_the_public_names() -> None:
    assert set(ropescale.__all__) == {
        "Geometry",
        "Method",
        "RopescaleError",
        "Spectrum",
        "__version__",
        "diagnose",
        "evaluate",
        "get_method",
        "list_methods",
        "load",
        "load_adapter",
        "patch",
        "patched",
        "read_geometry",
        "record",
        "rescale_checkpoint",
        "train",
        "unpatch",
    }
    assert len(ropescale.__all__) == 18
    assert dir(ropescale) == sorted(ropescale.__all__)
    for name in ropescale.__all__:
        assert getattr(ropescale, name) is not None


def test_the_type_checker_sees_every_lazy_name() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert homes == {name: f"ropescale.{home}" for name, home in ropescale._HOMES.items()}
    assert set(homes) | {"__version__"} == set(ropescale.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ropescale' has no attribute 'pach'$"):
        ropescale.pach  # noqa: B018


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after a statement."""
    script = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_ropescale_loads_neither_torch_nor_transformers() -> None:
    assert not {"torch", "transformers", "numpy", "rich"} & loaded_by("import ropescale")


def test_importing_the_methods_does_not_load_transformers() -> None:
    loaded = loaded_by("from ropescale.methods import get_method; get_method('yarn')(factor=4)")
    assert "torch" in loaded
    assert "transformers" not in loaded


def public_without_docstring(path: Path) -> list[str]:
    """The public classes, functions and methods of a file that say nothing about themselves.

    What overrides a method of `Method` or `Engine` says only what differs, so those of their files are left to the
    class.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    contract = CONTRACT if path in METHOD_FILES else set(vars(Engine)) if module_of(path) in ENGINE_FILES else set()
    silent = [] if ast.get_docstring(tree) else ["the module"]

    def visit(body: list[ast.stmt], prefix: str, skipped: set[str]) -> None:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_") or node.name in skipped:
                continue
            if not ast.get_docstring(node):
                silent.append(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.", contract)

    visit(tree.body, "", set())
    return silent


@shipped
def test_every_public_object_says_what_it_is(path: Path) -> None:
    assert public_without_docstring(path) == []


@method_files
def test_a_method_file_is_named_in_the_table_of_contents(path: Path) -> None:
    assert module_of(path) in imports_of(PACKAGE / "methods" / "__init__.py")


@method_files
def test_a_method_file_holds_the_one_method_of_its_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [
        keyword.value.value
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    ]
    assert names == [path.stem]
    assert get_method(path.stem).__module__ == module_of(path)


def test_every_registered_method_has_its_file() -> None:
    assert list_methods() == [path.stem for path in METHOD_FILES]


@pytest.mark.parametrize("name", list_methods())
def test_a_method_is_a_frozen_dataclass_of_keywords(name: str) -> None:
    method = get_method(name)
    assert dataclasses.is_dataclass(method)
    assert "__dataclass_params__" in vars(method), "the class itself is decorated, not its parent alone"
    assert method.__dataclass_params__.frozen
    assert all(item.kw_only for item in dataclasses.fields(method))
    assert method.name == name


def test_the_methods_that_the_package_exports_are_those_registered() -> None:
    from ropescale import methods

    exported = {value.name for value in vars(methods).values() if isinstance(value, type) and not value.abstract}
    assert exported == set(list_methods())
    assert len(methods.__all__) == len(set(methods.__all__))  # their order is the linter's affair


def test_the_table_of_methods_in_the_readme_is_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == list_methods()


# Functions of a user's, whose signatures are theirs, and one that lm-eval calls by its keywords
MANY_PARAMETERS = {
    "evals/engine.py: RopescaleLM.__init__",
    "evals/evaluate.py: evaluate",
    "ropescale/export/verification.py: verify",
    "ropescale/export/writing.py: export",
    "ropescale/frameworks/telling.py: flags",
    "ropescale/patching.py: patch",
    "ropescale/rescaling.py: rescale_checkpoint",
    "ropescale/serving/verification.py: verify_server",
}


def with_many_parameters(source: str) -> set[str]:
    """The functions that take more than eight parameters, the model or class that they belong to aside."""
    found = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > 8:
                    found.add(f"{prefix}{node.name}")
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(source).body, "")
    return found


def test_no_function_takes_more_than_eight_parameters_but_the_public_ones() -> None:
    found = {f"{named(path)}: {one}" for path in SHIPPED for one in with_many_parameters(path.read_text("utf-8"))}
    assert found == MANY_PARAMETERS
    assert with_many_parameters("class A:\n def f(self, a, b, c, d, e, f, g, *, h, i): ...") == {"A.f"}
    assert with_many_parameters("class A:\n def f(self, a, b, c, d, e, f, g, *, h): ...") == set()


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = re.compile(r"util|helper|common|misc", re.IGNORECASE)
    assert [
        named(path) for path in SHIPPED if any(drawers.search(part) for part in path.relative_to(ROOT).parts)
    ] == []


def places(text: str) -> dict[str, set[str]]:
    """What a "Where things live" names of each room: files, and folders, which end in a stroke."""
    listed = text.partition("## Where things live\n")[2].split("```")[1]
    rooms = re.split(r"^(\w+)/", listed, flags=re.MULTILINE)[1:]
    named = (set(re.findall(r"(?:\w+/)*\w+(?:\.py\b|/)", lines)) for lines in rooms[1::2])
    return dict(zip(rooms[::2], named, strict=True))


PLACES = places((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def nowhere(path: Path, listed: dict[str, set[str]]) -> bool:
    """Whether a list names neither a module nor a folder of its room that it lies in."""
    room, *folders, name = path.relative_to(ROOT).parts
    return name != "__init__.py" and not {name, *(f"{folder}/" for folder in folders)} & listed[room]


def gone(listed: dict[str, set[str]]) -> list[str]:
    """What a list names and the tree has not: neither in the room nor at the top."""
    return [
        f"{room}: {name}"
        for room, names in listed.items()
        for name in sorted(names)
        if not (ROOT / name).exists() and not any((ROOT / room).rglob(name.rstrip("/")))
    ]


def test_where_things_live_is_the_tree() -> None:
    assert [named(path) for path in SHIPPED if nowhere(path, PLACES)] == []
    assert gone(PLACES) == []


def test_a_module_without_a_place_and_a_place_without_a_module_are_found() -> None:
    listed = places("## Where things live\n```\nevals/  words\n  plan.py  what runs; report/: pages\nscripts/\n```\n")
    assert listed == {"evals": {"plan.py", "report/"}, "scripts": set()}
    assert nowhere(ROOT / "evals" / "engine.py", listed)
    assert not nowhere(ROOT / "evals" / "plan.py", listed)
    assert not nowhere(ROOT / "evals" / "report" / "page.py", listed)
    assert gone({"evals": {"plan.py", "report/", "scripts/census.py", "old.py", "old/"}}) == [
        "evals: old.py",
        "evals: old/",
    ]


def test_every_constraint_is_one_exact_version() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ;.*)?( *#.*)?", line)] == []


DATA = {
    "ropescale.checkpoints.tiny",
    "ropescale.evals.data",
    "ropescale.recipes.machines",
}  # folders of the wheel without a module


def test_every_package_of_the_house_is_in_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {module_of(path.parent) for path in SHIPPED}
    assert listed == {re.sub(rf"^({'|'.join(BESIDE)})\b", r"ropescale.\1", name) for name in folders} | DATA
