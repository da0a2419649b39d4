"""The command line: `planton run`, `planton status` and so on. Needs the extra `cli`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of the process."""
    try:
        from planton.cli._commands import planton
    except ModuleNotFoundError as error:
        sys.exit(f"planton: {error.name} is not installed: pip install 'planton[cli]'")
    planton()
