"""One suite for all storages: every promise of `planton.storage` that a backend can break."""

from planton.testing.conformance._advance import AdvancePromises, TakeOverPromises
from planton.testing.conformance._claims import ClaimPromises
from planton.testing.conformance._cron import CronPromises
from planton.testing.conformance._database import DatabasePromises
from planton.testing.conformance._due import DuePromises, ExpiryPromises
from planton.testing.conformance._fleet import FleetPromises
from planton.testing.conformance._harm import HarmPromises
from planton.testing.conformance._operations import OperationPromises
from planton.testing.conformance._partitions import PartitionPromises
from planton.testing.conformance._queue import QueuePromises
from planton.testing.conformance._reports import ReportPromises


class StorageConformance(
    ClaimPromises,
    ExpiryPromises,
    QueuePromises,
    PartitionPromises,
    ReportPromises,
    TakeOverPromises,
    AdvancePromises,
    OperationPromises,
    CronPromises,
    DuePromises,
    FleetPromises,
    HarmPromises,
    DatabasePromises,
):
    """What a storage promises, as tests for pytest with pytest-trio in its `trio_mode`.

    Subclass it, give it the fixtures `storage` and `other` and a way to let time pass, and say what
    the storage can do besides: docs/adapters.md has an example, and the list.
    """
