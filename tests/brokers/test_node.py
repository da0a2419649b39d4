"""The consumer in Node.js that the page shows."""

import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

from planton import Planton
from planton_brokers import Relay
from planton_brokers.rabbitmq import RabbitMQ
from planton_postgres import PostgresStorage

PAGE = Path(__file__).parents[2] / "docs/brokers.md"


@pytest.fixture(scope="session")
def modules():
    """What the consumer needs, looked for before a server is started."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not there")
    done = subprocess.run(["node", "-e", "require('amqplib'); require('pg')"], capture_output=True)
    if done.returncode:
        pytest.skip("npm install amqplib pg, and set NODE_PATH to its node_modules")


def to_variables(dsn):
    """What psycopg reads from a DSN, as the environment of libpq and of node's pg."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    names |= {"password": "PGPASSWORD", "options": "PGOPTIONS"}
    return {names[key]: str(value) for key, value in conninfo_to_dict(dsn).items()}


@pytest.mark.usefixtures("modules")
async def test_a_consumer_in_another_language_executes_and_reports(rabbitmq_port, schema_dsn):
    """By SQL functions; what fails is tried again."""
    url, queue = f"amqp://127.0.0.1:{rabbitmq_port}", uuid.uuid4().hex
    (script,) = re.findall(r"^```javascript\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    script = script.replace(
        'console.log("to", address);', 'if (address === "b") throw Error("no");'
    )
    environment = {"BROKER_URL": url, "QUEUE": queue, **to_variables(schema_dsn)}
    relay = Relay(RabbitMQ(url, queue=queue))
    async with PostgresStorage(schema_dsn, migrate=True) as storage:
        task = storage.queue_task("send_email", concurrency=100, delay=0.2, lease=relay.transit)
        async with Planton(storages=[storage], consumers=[relay], tasks=[task]):
            await storage.enqueue_many("send_email", ["a", "b", "c"])
            node = subprocess.Popen(["node", "-e", script], env=os.environ | environment)
            try:
                with trio.fail_after(20):
                    while not is_settled(await storage.find()):
                        await trio.sleep(0.1)
            finally:
                node.kill()
                node.wait()
        found = {each.instruction: each for each in await storage.find()}

    assert ["succeeded", "succeeded"] == [found[name].status for name in "ac"]
    assert {"sent": True} == found["a"].result
    assert ("queued", "Error: no", 2) == (found["b"].status, found["b"].error, found["b"].retries)


def is_settled(found):
    return 2 == sum(each.status == "succeeded" for each in found) and any(
        each.error for each in found
    )
