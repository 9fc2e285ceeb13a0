"""The layers of docs/architecture.md, and rules for every file of the package, read from the source itself."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "redlab"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ["extras", "spelling", "provenance", "rng", "precision", "batch", "nn", "victims", "attacks", "crafting"]
LAYERS += [
    "metrics",
    "report",
    "evaluation",
    "notebook",
    "soundness",
    "probes",
    "data",
    "methods",
    "diagnosis",
    "studies",
    "runs",
]
# the layers that each layer may import at most, besides itself and the package's own version
ALLOWED = {
    "extras": set(),
    "spelling": set(),
    "provenance": set(),
    "rng": set(),
    "precision": set(),
    "batch": set(),
    "nn": set(),
    "victims": {"batch", "extras", "spelling"},
    "attacks": {"rng", "precision", "batch", "extras", "spelling"},
    "crafting": {"rng", "batch", "attacks", "spelling"},
    "metrics": set(),
    "report": {"batch", "metrics"},
    "evaluation": {"precision", "batch", "metrics"},
    "notebook": {"batch", "attacks", "crafting", "metrics", "evaluation"},
    "soundness": {"precision", "batch", "attacks", "crafting", "metrics", "report", "evaluation", "notebook"},
    "probes": {"rng", "precision", "batch", "attacks", "metrics", "victims", "evaluation"},
    "data": {"rng", "batch", "attacks", "crafting", "evaluation"},
    "methods": {"rng", "batch", "nn", "metrics", "evaluation", "victims"},
    "diagnosis": {"precision", "batch", "victims", "evaluation", "probes"},
    "studies": {
        *("spelling", "provenance", "batch", "attacks", "crafting", "metrics", "report", "probes"),
        *("victims", "methods"),  # to count their parameters
    },
    "runs": {
        *("provenance", "batch", "metrics", "victims", "attacks", "crafting", "report", "evaluation", "probes"),
        *("data", "methods", "studies", "extras", "spelling", "diagnosis", "soundness"),
    },
}
# and the files of runs/, of which each imports from those before it
RUNS = ["check", "folders", "config", "blame", "trust", "sweeps", "words", "identity", "stopping", "console"]
RUNS += [
    "dashboard",
    "loggers",
    "monitors",
    "trainer",
    "build",
    "checkpoints",
    "loading",
    "pretrained",
    "examiners",
    "diagnose",
    "dry",
    "banks",
    "evaluations",
    "soundness",
    "train",
    "demo",
    "infer",
    "export",
    "ask",
    "summary",
    "lab",
    "cli",
]


def layer(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path):
    """Full names that a file imports, lazily too, but not those for annotations only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def redlab_layers(path):
    found = {name.split(".")[1] for name in imports(path) if name.startswith("redlab.")}
    return found & set(LAYERS)


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


def relative(path):
    return str(path.relative_to(PACKAGE))


def test_the_reader_of_imports_sees_them():
    assert "crafting" in redlab_layers(PACKAGE / "data" / "module.py")
    assert "hydra" in packages(PACKAGE / "runs" / "cli.py")
    assert "redlab.runs.train.train" in set(imports(PACKAGE / "runs" / "cli.py"))  # a lazy import
    assert {layer(path) for path in FILES} == {*LAYERS, "__init__", "__main__"}


@pytest.mark.parametrize("path", [f for f in FILES if layer(f) in LAYERS], ids=relative)
def test_imports_go_downward(path):
    assert redlab_layers(path) <= {layer(path)} | ALLOWED[layer(path)]


@pytest.mark.parametrize("name", RUNS)
def test_imports_within_runs_go_downward(name):
    found = {full.split(".")[2] for full in imports(PACKAGE / "runs" / f"{name}.py") if full.startswith("redlab.runs.")}
    assert found <= set(RUNS[: RUNS.index(name)])
    assert {path.stem for path in (PACKAGE / "runs").glob("*.py")} == {*RUNS, "__init__"}


def test_the_allowed_imports_are_those_of_the_documentation():
    order = {name: place for place, name in enumerate(LAYERS)}
    assert all(order[lower] < order[upper] for upper, lowers in ALLOWED.items() for lower in lowers)
    assert "attacks" not in ALLOWED["methods"] | ALLOWED["victims"]
    assert "methods" not in ALLOWED["data"]
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    named = [word.removesuffix(".py") for row in rows for word in re.findall(r"`(\w+(?:\.py)?)/?`", row)]
    assert named == ["train", "evaluate", *reversed(LAYERS)]


def test_who_knows_hydra_and_lightning():
    knows = {
        package: {layer(f) for f in FILES if package in packages(f)} for package in ("hydra", "omegaconf", "wandb")
    }
    assert knows["hydra"] == {"runs"}
    assert knows["omegaconf"] == {"runs"}
    assert knows["wandb"] <= {"runs", "report"}
    lightning = {layer(f) for f in FILES if packages(f) & {"lightning", "pytorch_lightning", "lightning_fabric"}}
    assert lightning == {"runs", "methods", "data"}


def test_packages_that_are_imported_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[<>=\[ ]", d)[0].replace("-", "_") for d in declared}
    names = {"hydra" if n == "hydra_core" else "sklearn" if n == "scikit_learn" else n for n in names}
    come_with = {"numpy", "PIL", "scipy"}  # of torchvision and scikit-learn
    standard = {"redlab", "__future__"} | sys.stdlib_module_names
    for path in FILES:
        assert packages(path) <= names | come_with | standard, path


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_what_no_file_of_the_package_contains(path):
    source = path.read_text()
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    assert not [n.lineno for n in nodes if isinstance(n, ast.Assert)], "checks of input raise ValueError"
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", source)
    assert not [n.lineno for n in nodes if isinstance(n, ast.ExceptHandler) and n.type is None], "bare except"
    assert not packages(path) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for call in (n for n in nodes if isinstance(n, ast.Call)):
        name = ast.unparse(call.func)
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"line {call.lineno}"
        assert name not in ("eval", "exec", "os.system"), f"line {call.lineno}"
        assert given.get("allow_pickle") != "True", f"line {call.lineno}"
        assert given.get("shell") != "True", f"line {call.lineno}"
    assert ast.get_docstring(tree), "a file says what it is for"


def test_no_file_is_a_drawer():
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}
    lines = {relative(path): len(path.read_text().splitlines()) for path in FILES}
    assert max(lines.values()) <= 400, max(lines, key=lines.get)


def test_paths_that_tools_are_configured_with_exist():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tool, project = config["tool"], config["project"]
    paths = [project["readme"], *project["license-files"]]
    paths += tool["hatch"]["build"]["targets"]["wheel"]["packages"]
    paths += tool["hatch"]["build"]["targets"]["wheel"]["force-include"]
    paths += [p.lstrip("/") for p in tool["hatch"]["build"]["targets"]["sdist"]["include"]]
    paths += [*tool["ruff"]["src"], *(p.removesuffix("/**") for p in tool["ruff"]["lint"]["per-file-ignores"])]
    paths += [*tool["mypy"]["files"], *tool["pytest"]["ini_options"]["testpaths"]]
    missing = [p for p in paths if not (ROOT / p).exists()]
    assert not missing
