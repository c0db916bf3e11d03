import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.datasets import catalog


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Forget what a test registers."""
    ours = (catalog._SOURCES, catalog._PREPARE, catalog._SETTINGS)
    tables = (DatasetCatalog, MetadataCatalog, *ours)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        for name in list(table):
            if name not in entries:
                del table[name]
        table.update(entries)
