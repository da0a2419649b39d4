"""What storages share, and the port that a database fills."""

from planton._failures import failure_of
from planton._functions import check_function, is_async
from planton._listeners import EventListeners
from planton._loop.log import ErrorLog
from planton._text import describe, leaves, traceback_of
from planton.storage._arguments import (
    Status,
    to_count,
    to_error_text,
    to_flag,
    to_instruction,
    to_json,
    to_name,
    to_number,
    to_partition,
)
from planton.storage._backend import (
    Answer,
    Claimed,
    ClaimedRow,
    ClaimRequest,
    Filter,
    NewInstruction,
    Receipt,
    Registration,
    Report,
    Rule,
    Watcher,
)
from planton.storage._callers import Caller
from planton.storage._consumers import Receipts, Reports
from planton.storage._cron import CronTimes, Fires, Misfire
from planton.storage._kinds import by_kind, found_by, said_by
from planton.storage._port import Backend
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
from planton.storage._rows import to_datetime
from planton.storage._sources import ClaimOptions, TaskOptions
from planton.storage._sql import (
    are_new,
    check_version,
    load_migrations,
    load_sql,
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
    "EventListeners",
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
    "by_kind",
    "check_function",
    "check_version",
    "describe",
    "failure_of",
    "found_by",
    "is_async",
    "leaves",
    "load_migrations",
    "load_sql",
    "load_statements",
    "refuse_newer",
    "said_by",
    "to_count",
    "to_datetime",
    "to_error_text",
    "to_flag",
    "to_instruction",
    "to_json",
    "to_name",
    "to_number",
    "to_partition",
    "to_rows",
    "traceback_of",
]
