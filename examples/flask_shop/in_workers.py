"""Settings of gunicorn: each web worker runs Planton in a thread, begun after the fork."""

from typing import Any

from planton.hosting import start_in_thread


def post_worker_init(worker: Any) -> None:
    from tasks import planton

    worker.planton = start_in_thread(planton)


def worker_exit(server: Any, worker: Any) -> None:
    worker.planton.terminate()
