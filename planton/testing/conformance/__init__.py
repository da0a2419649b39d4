"""One suite for all storages. It needs pytest, with which alone it is imported."""
