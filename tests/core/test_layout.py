"""Rules that hold for the whole tree."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import planton

PACKAGES = (
    "planton",
    "planton.asyncio",
    "planton.delays",
    "planton.hosting",
    "planton.storage",
    "planton.testing",
)
ADAPTERS = {"planton_sqlite", "planton_postgres", "planton_executor"}


def modules_of(package: str) -> list[Path]:
    root = Path(importlib.import_module(package).__file__ or "").parent
    return [path for path in root.rglob("*.py") if "__pycache__" not in path.parts]


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_core_knows_no_adapter():
    """planton imports nothing from adapters."""
    for path in modules_of("planton"):
        assert not {name.split(".")[0] for name in imports_of(path)} & ADAPTERS, path


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_adapters_use_public_names_only(adapter):
    """They could be somebody else's."""
    if importlib.util.find_spec(adapter) is None:
        pytest.skip(f"there is no {adapter} yet")
    for path in modules_of(adapter):
        private = {
            name
            for name in imports_of(path)
            if name.startswith("planton.") and any(part.startswith("_") for part in name.split("."))
        }

        assert not private, path


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_are_there_and_documented(package):
    """`__all__` is the API."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        member = getattr(module, name)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert member.__doc__, name


def test_public_names_of_the_package_agree_with_all():
    """Nothing leaks, nothing is missing."""
    submodules = {module.name for module in pkgutil.iter_modules(planton.__path__)}
    public = {name for name in vars(planton) if not name.startswith("_")}

    assert set(planton.__all__) == public - (submodules - {"delays"})
    assert sorted(planton.__all__, key=str) == planton.__all__


def test_the_core_needs_attrs_and_trio_alone():
    """No asyncio, no cron library, no command line is imported."""
    code = (
        "import sys, planton; bad = {'asyncio', 'cronsim', 'click', 'rich', 'sqlite_utils', "
        "'psycopg', 'cattrs'} & set(sys.modules); sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ("", 0) == (done.stderr, done.returncode)


def test_at_most_a_dozen_leaves_of_errors():
    """One base, few leaves."""
    leaves = [
        error
        for error in vars(planton).values()
        if isinstance(error, type) and issubclass(error, planton.PlantonError)
    ]

    assert len(leaves) - 1 <= 12
