"""One suite for all storages: every promise of `planton.storage` as a test."""

from planton.testing.conformance._suite import StorageConformance

__all__ = ["StorageConformance"]
