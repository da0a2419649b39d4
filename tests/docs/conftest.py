"""What tests of the pages share."""

from collections.abc import Callable
from pathlib import Path

import pytest

import planton


@pytest.fixture
def linked() -> Callable[[Path, str], Path]:
    """Where a link leads; into the package that is installed, which may not be the checkout's."""

    def resolve(page: Path, target: str) -> Path:
        path = (page.parent / target).resolve()
        root = Path(__file__).parents[2]
        if path.is_relative_to(root / "planton"):
            return Path(planton.__file__).parent / path.relative_to(root / "planton")
        return path

    return resolve
