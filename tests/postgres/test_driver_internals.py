"""What the driver leans on, and what it must not lean on."""

import ast
import inspect
from pathlib import Path

import psycopg
import psycopg.connection_async
import pytest
import trio
from psycopg import generators

import planton_postgres._driver
from planton_postgres._driver import TrioConnection, _internals

MODULES = sorted(Path(planton_postgres._driver.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_the_driver_imports_nothing_of_planton(module):
    """It could be published by itself: its imports are psycopg, trio and the standard library."""
    tree = ast.parse(module.read_text())
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    } | {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
    }
    levels = {node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert set() == {name for name in imported if name.startswith("planton")}
    assert max(levels, default=0) <= 1


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_what_psycopg_does_not_document_is_used_in_one_module(module):
    """Nobody else reaches for an attribute with an underscore that is not its own."""
    private = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) != "self"
    ]

    assert (module.stem == "_internals") == bool(private)


def test_psycopg_is_of_the_minor_version_that_this_was_written_for():
    """A new one has to be read, and run against these tests, first."""
    assert "3.3" == ".".join(psycopg.__version__.split(".")[:2])


def test_all_is_what_the_package_exports():
    """And each of it says what it is for."""
    driver = planton_postgres._driver
    public = {name for name in vars(driver) if not name.startswith("_")}

    assert sorted(public) == sorted(driver.__all__)
    assert [] == [name for name in public if not inspect.getdoc(getattr(driver, name))]


@pytest.mark.parametrize(
    ("owner", "name"),
    (
        (psycopg.AsyncConnection, "_rollback_gen"),
        (psycopg.errors, "error_from_result"),
        (generators, "connect"),
        (generators, "cancel"),
        (generators, "send"),
        (generators, "fetch_many"),
        (_internals.PostgresQuery, "convert"),
        (_internals.PrepareManager, "get"),
        (_internals.PrepareManager, "maybe_add_to_cache"),
        (_internals.PrepareManager, "validate"),
        (_internals.PrepareManager, "clear"),
        (_internals.PrepareManager, "maintain_gen"),
    ),
)
def test_the_undocumented_parts_are_there(owner, name):
    """Gone or renamed, they would show only in the rare cases that need them."""
    assert callable(getattr(owner, name))


async def test_the_undocumented_attributes_are_there(connection):
    """A new attribute in their place would be set in vain, and without an error."""
    await connection.close()
    asyncio_connection = psycopg.AsyncConnection(connection.pgconn)

    assert {"lock", "_autocommit", "_prepared"} <= set(vars(asyncio_connection))
    assert hasattr(connection.pgconn, "_encoding")
    assert hasattr(connection.pgconn, "notify_handler")


def test_psycopg_waits_only_through_what_we_override():
    """Everything else of its connection that awaits asyncio is overridden, or is not supported."""
    source = inspect.getsource(psycopg.connection_async)
    users = {
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(
            isinstance(node, ast.Name) and node.id in {"asyncio", "waiting"}
            for node in ast.walk(function)
        )
    }

    assert {"connect", "cancel_safe", "wait"} == users
    assert users - {"cancel_safe"} <= set(vars(TrioConnection))


def test_every_function_of_the_internals_says_what_it_is_for():
    """A line each: what psycopg does there, or why there is no public way."""
    functions = [f for _, f in inspect.getmembers(_internals, inspect.isfunction)]

    assert [] == [f.__name__ for f in functions if not inspect.getdoc(f)]


async def test_ctrl_c_cannot_strike_while_a_generator_runs(connection):
    """It would be left in the middle of a message."""

    def generator():
        protected.append(trio.lowlevel.currently_ki_protected())
        return
        yield

    protected = []
    await connection.wait(generator())

    assert [True] == protected
