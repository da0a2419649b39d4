"""SQLAlchemy beside Planton: its statements as sources of tasks, its sessions to queue in."""

from planton_sqlalchemy._enqueue import enqueue
from planton_sqlalchemy._statement import claim_task

__all__ = ["claim_task", "enqueue"]
