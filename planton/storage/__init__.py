"""What storages share, and the port that a database fills."""

from planton._failures import failure_of
from planton._loop.log import ErrorLog
from planton._text import describe
from planton.storage._arguments import (
    Status,
    to_count,
    to_error_text,
    to_instruction,
    to_json,
    to_name,
    to_number,
    to_partition,
)
from planton.storage._backend import (
    Answer,
    Backend,
    Claimed,
    ClaimedRow,
    ClaimRequest,
    Filter,
    NewInstruction,
    Receipt,
    Registration,
    Registry,
    Report,
    Rule,
    Watcher,
)
from planton.storage._callers import Caller, caller_of
from planton.storage._consumers import Receipts, Reports
from planton.storage._cron import CronTimes, Fires, Misfire
from planton.storage._records import (
    FORGOTTEN_AFTER,
    LOST_AFTER,
    Acknowledged,
    DispatcherRecord,
    InstructionRecord,
    TakenOver,
    TaskReport,
    TaskStats,
)
from planton.storage._sources import ClaimOptions, TaskOptions
from planton.storage._sql import (
    are_new,
    check_version,
    load_migrations,
    load_statements,
    refuse_newer,
    to_rows,
)
from planton.storage._storage import InstructionOptions, QueueOptions, Storage

__all__ = [
    "FORGOTTEN_AFTER",
    "LOST_AFTER",
    "Acknowledged",
    "Answer",
    "Backend",
    "Caller",
    "ClaimOptions",
    "ClaimRequest",
    "Claimed",
    "ClaimedRow",
    "CronTimes",
    "DispatcherRecord",
    "ErrorLog",
    "Filter",
    "Fires",
    "InstructionOptions",
    "InstructionRecord",
    "Misfire",
    "NewInstruction",
    "QueueOptions",
    "Receipt",
    "Receipts",
    "Registration",
    "Registry",
    "Report",
    "Reports",
    "Rule",
    "Status",
    "Storage",
    "TakenOver",
    "TaskOptions",
    "TaskReport",
    "TaskStats",
    "Watcher",
    "are_new",
    "caller_of",
    "check_version",
    "describe",
    "failure_of",
    "load_migrations",
    "load_statements",
    "refuse_newer",
    "to_count",
    "to_error_text",
    "to_instruction",
    "to_json",
    "to_name",
    "to_number",
    "to_partition",
    "to_rows",
]
