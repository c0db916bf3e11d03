import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.datasets import lvis_format


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Forget what a test registers."""
    tables = (DatasetCatalog, MetadataCatalog, lvis_format._SOURCES, lvis_format._PREPARE)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        for name in list(table):
            if name not in entries:
                del table[name]
        table.update(entries)
