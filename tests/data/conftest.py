import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lt_det.data.datasets import catalog, sem_seg_sets


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Forget what a test registers."""
    ours = (catalog._SOURCES, catalog._PREPARE, catalog._SETTINGS)
    maps = (sem_seg_sets._SEM_SEG_SETS, sem_seg_sets._PREPARE_SET)
    tables = (DatasetCatalog, MetadataCatalog, *ours, *maps)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        for name in list(table):
            if name not in entries:
                del table[name]
        table.update(entries)
