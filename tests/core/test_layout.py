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
ADAPTERS = {"planton_sqlite", "planton_postgres", "planton_executor", "planton_brokers"}


def modules_of(package: str) -> list[Path]:
    root = Path(importlib.import_module(package).__file__ or "").parent
    return [path for path in root.rglob("*.py") if "__pycache__" not in path.parts]


def imports_of(path: Path, *, also_for_types: bool = True) -> set[str]:
    names = set()
    tree = ast.parse(path.read_text())
    if not also_for_types:
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_core_knows_no_adapter():
    """planton imports nothing from adapters, but for a checker of types."""
    for path in modules_of("planton"):
        names = imports_of(path, also_for_types=False)

        assert not {name.split(".")[0] for name in names} & ADAPTERS, path


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


def test_no_module_imports_one_that_imports_it():
    """Neither directly nor over others, nor for a type checker only."""
    imports = {name: imported_by(name, path) for name, path in modules_by_name().items()}
    circles = [name for name in imports if name in reachable(imports, name)]

    assert [] == circles


def test_nobody_reaches_into_the_private_names_of_another_module():
    """Whoever needs one asks for a public one."""
    found = [
        f"{path.name}:{line} {name}"
        for path in modules_by_name().values()
        for line, name in foreign_private_names(path)
    ]

    assert [] == found


def modules_by_name() -> dict[str, Path]:
    root = Path(planton.__file__).parent
    names = {}
    for path in modules_of("planton"):
        parts = ("planton", *path.relative_to(root).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported_by(module: str, path: Path) -> set[str]:
    """Modules of planton that a module names, a package's own ones left out for its `__init__`."""
    known, found = modules_by_name(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & set(known) or {node.module}
    return (found & set(known)) - {module}


def reachable(imports: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


# Public in spite of their names: NamedTuple's, and os._exit. Trio has no public way to repeat an
# order of its tasks.
PUBLIC_ALL_THE_SAME = {"_make", "_exit", "_ALLOW_DETERMINISTIC_SCHEDULING", "_r"}


def foreign_private_names(path: Path) -> list[tuple[int, str]]:
    """Private attributes that a module uses of something, and never defines itself."""
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if hasattr(node, "name")}
    own |= {node.target.id for node in ast.walk(tree) if is_field(node)}
    return [
        (node.lineno, node.attr)
        for node in nodes
        if node.attr.startswith("_") and not node.attr.startswith("__")
        if not is_own(node) and node.attr not in own | PUBLIC_ALL_THE_SAME
    ]


def is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
