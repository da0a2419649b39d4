"""One suite for all storages: every promise of `planton.abc` as a test."""

from planton.testing._conformance_advance import AdvancePromises
from planton.testing._conformance_claims import ClaimPromises
from planton.testing._conformance_cron import CronPromises
from planton.testing._conformance_database import DatabasePromises
from planton.testing._conformance_due import DuePromises
from planton.testing._conformance_fleet import FleetPromises
from planton.testing._conformance_input import InputPromises
from planton.testing._conformance_operations import OperationPromises
from planton.testing._conformance_queue import QueuePromises
from planton.testing._conformance_reports import ReportPromises


class StorageConformance(
    ClaimPromises,
    QueuePromises,
    ReportPromises,
    AdvancePromises,
    OperationPromises,
    CronPromises,
    DuePromises,
    FleetPromises,
    InputPromises,
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
