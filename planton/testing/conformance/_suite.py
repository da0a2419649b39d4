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

    Subclass it, give it two fixtures and a way to let time pass, and say what the storage can do
    besides; their list is in docs/adapters.md.

    Examples:
        A storage that lives in a file::

            class TestMyStorage(StorageConformance):
                @pytest.fixture
                async def storage(self, tmp_path):
                    async with MyStorage(tmp_path / "app.db") as storage:
                        await storage.migrate()
                        yield storage

                @pytest.fixture
                async def other(self, storage):
                    async with MyStorage(storage.path) as other:
                        yield other

                async def advance(self, storage, seconds):
                    set_all_stored_times_back(storage.path, seconds)
    """
