"""Real brokers, started once for all workers of a test run."""

import fcntl
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import pytest
import trio.testing


def run_in_virtual_time(function, *, clock, instruments):
    clock = clock or trio.testing.MockClock(autojump_threshold=0)
    return trio.run(function, clock=clock, instruments=instruments)


def pytest_collection_modifyitems(items):
    """Give the autojump clock to the tests on the storage and the broker in memory."""
    for item in items:
        is_async = inspect.iscoroutinefunction(getattr(item, "function", None))
        if is_async and item.path.name in ("test_relay.py", "test_webhook.py"):
            item.add_marker(pytest.mark.trio(run=run_in_virtual_time), append=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server as a process of its own, which can be killed and started again at its port."""

    def __init__(self, folder: Path, command, name: str, port: int | None = None) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not there: apt-get install it")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port()
        self._command = command
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            command, environment = self._command(self.folder, self.port)
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | environment,
                start_new_session=True,
                cwd=self.folder,
            )
        self.wait()

    def wait(self) -> None:
        """Wait until it accepts connections."""
        for _ in range(600):
            if is_open(self.port):
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Kill it, and all that it started."""
        kill(self.process.pid, self.port)
        self.process.wait()


def kill(group: int, port: int = 0) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    environment = os.environ | {"ERL_EPMD_PORT": str(epmd_port(port))}
    for _ in range(20):  # Erlang's own daemon stays for as long as it knows of a node
        if shutil.which("epmd") is None or not is_open(epmd_port(port)):
            return
        subprocess.run(["epmd", "-kill"], env=environment, capture_output=True)
        time.sleep(0.1)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def epmd_port(port: int) -> int:
    return port + 10000 if port < 40000 else port - 10000


def redis(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    return ["redis-server", *where, *durable], {}


def nats(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    config = folder / "nats.conf"
    config.write_text(f'host: "127.0.0.1"\nport: {port}\njetstream {{ store_dir: "{folder}" }}\n')
    return ["nats-server", "-c", str(config)], {}


def rabbitmq(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    distribution = port + 20000 if port < 40000 else port - 20000
    (folder / "plugins").write_text("[].")
    # Debian's command becomes another user, who may not look into pytest's folder.
    script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return [str(script) if script.exists() else "rabbitmq-server"], {
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "ERL_EPMD_PORT": str(epmd_port(port)),
        "HOME": str(folder),
    }


def moto(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    return [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        str(port),
    ], {}


@contextmanager
def shared(tmp_path_factory, command, name: str) -> Iterator[int]:
    """The port of a server that the workers share: the first starts it, the last ends it."""
    base = tmp_path_factory.getbasetemp()
    folder = (
        base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    ) / f"shared-{Path(name).name}"
    folder.mkdir(exist_ok=True)
    state, server = folder / "state.json", None
    with locked(folder):
        if state.exists():
            port, group, users = json.loads(state.read_text())
        else:
            server = Server(folder, command, name)
            server.start()
            port, group, users = server.port, server.process.pid, 0
        state.write_text(json.dumps([port, group, users + 1]))
    yield port
    with locked(folder):
        port, group, users = json.loads(state.read_text())
        state.write_text(json.dumps([port, group, users - 1]))
        if users == 1:
            kill(group, port)
            state.unlink()
    if server is not None:
        server.process.returncode = 0  # whoever kills it may be another


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory):
    with shared(tmp_path_factory, redis, "redis-server") as port:
        yield port


@pytest.fixture(scope="session")
def nats_port(tmp_path_factory):
    with shared(tmp_path_factory, nats, "nats-server") as port:
        yield port


@pytest.fixture(scope="session")
def rabbitmq_port(tmp_path_factory):
    with shared(tmp_path_factory, rabbitmq, "rabbitmq-server") as port:
        yield port


@pytest.fixture(scope="session")
def moto_port(tmp_path_factory):
    with shared(tmp_path_factory, moto, sys.executable) as port:
        yield port


class MockedKafka:
    """A cluster that librdkafka mocks in this process, for as long as its producer lives."""

    def __init__(self) -> None:
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": "mock", "test.mock.num.brokers": 3}
        )
        brokers = self._producer.list_topics(timeout=10).brokers.values()
        self.address = ",".join(f"{each.host}:{each.port}" for each in brokers)

    def start(self) -> None:
        """It runs as soon as it is made."""

    def kill(self) -> None:
        self._producer.flush()


COMMANDS = {
    "redis": (redis, "redis-server"),
    "nats": (nats, "nats-server"),
    "rabbitmq": (rabbitmq, "rabbitmq-server"),
    "sqs": (moto, sys.executable),
    "celery": (redis, "redis-server"),
}


@pytest.fixture(scope="session")
def kafka_servers():
    """Where the brokers of a mocked cluster are."""
    cluster = MockedKafka()
    yield cluster.address
    cluster.kill()


@pytest.fixture
def make_server(tmp_path):
    """Starts a server that may be killed: `.kill()`, `.start()`, `.port`."""
    servers = []

    def make(kind):
        is_mocked = kind == "kafka"
        servers.append(MockedKafka() if is_mocked else Server(tmp_path / kind, *COMMANDS[kind]))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.kill()
