"""README, pages and examples pass mypy --strict, in one run of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(?!>>>)(.*?)^```", re.MULTILINE | re.DOTALL)
_SETTINGS = """
[mypy]
strict = true
plugins = mypy_django_plugin.main
[mypy.plugins.django-stubs]
django_settings_module = shop.settings
# Celery is not typed, nor are its decorators.
[mypy-celery.*]
ignore_missing_imports = true
[mypy-page_brokers]
disallow_untyped_decorators = false
"""


def lay_out(folder: Path) -> None:
    """Write what is to be checked as modules of one folder."""
    for page in ROOT.glob("docs/*.md"):
        # A page is one program, in the same lines.
        (folder / f"page_{page.stem}.py").write_text(program_of(page.read_text()))
    for number, block in enumerate(_BLOCK.findall((ROOT / "README.md").read_text())):
        (folder / f"readme_{number}.py").write_text(block)
    for example in ROOT.glob("examples/*"):
        if example.suffix == ".py":
            shutil.copy(example, folder)
        elif example.is_dir() and len(files := list(example.rglob("*.py"))) == 1:
            shutil.copy(files[0], folder / f"{example.name}.py")
        elif example.is_dir():
            shutil.copytree(example, folder, dirs_exist_ok=True)


def program_of(page: str) -> str:
    """Return the code of a page, each line at its place; a second definition replaces the first."""
    lines = [""] * page.count("\n")
    for block in _BLOCK.finditer(page):
        first = page[: block.start(1)].count("\n")
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines) + "\n"


def test_all_code_that_is_shown_passes_mypy_strict(tmp_path):
    """Also Django's models, by its plugin."""
    (tmp_path / "code").mkdir()
    lay_out(tmp_path / "code")
    (tmp_path / "mypy.ini").write_text(_SETTINGS)
    environment = {**os.environ, "DATABASE_URL": "postgresql:///app"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            "../mypy.ini",
            "--cache-dir",
            "../cache",
            ".",
        ],
        cwd=tmp_path / "code",
        env=environment,
        capture_output=True,
        text=True,
    )

    assert ("", 0) == (done.stderr, done.returncode), done.stdout
