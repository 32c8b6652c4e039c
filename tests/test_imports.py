"""The import rules: which part of the package may know which other, and what stays out of a plain import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mvtrain"
STANDARD_LIBRARY_ONLY = (
    "trace.py", "grammar.py", "prompt.py", "manifest.py", "overlap.py", "launchers.py", "folders.py",
)  # fmt: skip

# Part -> the parts it may import. A part is a module or a folder of the package.
ALLOWED = {
    "trace": set(),
    "grammar": {"trace"},
    "prompt": {"grammar"},
    "manifest": set(),
    "overlap": set(),
    "provenance": set(),
    "launchers": set(),
    "folders": set(),
    "wandb_run": {"provenance"},
    "layout": {"grammar"},
    "attention": {"layout"},
    "engine": {"grammar", "layout", "attention", "prompt", "manifest"},
    "evaluate": {
        "grammar",
        "layout",
        "attention",
        "engine",
        "prompt",
        "manifest",
        "overlap",
        "provenance",
        "launchers",
        "folders",
        "wandb_run",
    },
    "data": {"grammar", "layout", "attention", "prompt"},
    "train": {"grammar", "layout", "attention", "prompt", "data", "manifest", "provenance", "launchers", "wandb_run"},
    "convert": {"grammar", "layout", "manifest", "sources", "conversion_checks"},
    "sources": {"grammar", "layout"},
    "conversion_checks": {"grammar", "layout"},
    "curate": {"grammar", "trace", "prompt", "provenance", "folders"},
}
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "wandb", "numpy")
ENGINE_DOES_WITHOUT = {"deepspeed", "datasets", "wandb"}


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, at any depth."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_parts_import_only_what_they_may(path):
    part = part_of(path)
    others = {m.split(".")[1] for m in imported_modules(path) if m.startswith("mvtrain.")} - {part, "__version__"}
    assert "cli" not in others and ("commands" not in others or part == "commands"), "nothing imports the command line"
    if part in ALLOWED:
        assert others <= ALLOWED[part], f"{part} imports {sorted(others - ALLOWED[part])}"


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_the_grammar_needs_the_standard_library_only(name):
    roots = {module.split(".")[0] for module in imported_modules(PACKAGE / name)} - {"mvtrain"}
    assert roots <= set(sys.stdlib_module_names), roots - set(sys.stdlib_module_names)


def test_the_engine_does_without_training_libraries():
    for path in (PACKAGE / "engine").rglob("*.py"):
        assert not {m.split(".")[0] for m in imported_modules(path)} & ENGINE_DOES_WITHOUT, path


def test_every_part_that_has_rules_exists_and_every_package_has_rules():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"commands"}
    assert packages <= set(ALLOWED)
    assert {"grammar", "layout", "attention", "engine", "evaluate", "data", "train"} <= {part_of(p) for p in files()}


@pytest.mark.parametrize(
    "code", ["import mvtrain", "from mvtrain.cli import main; main(['--help'])", "import mvtrain.data"]
)
def test_a_plain_import_loads_nothing_heavy(code):
    probe = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert output.strip().splitlines()[-1] == "[]"


def test_the_probe_above_notices_a_heavy_import():
    probe = "import mvtrain.layout, sys; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "True"
