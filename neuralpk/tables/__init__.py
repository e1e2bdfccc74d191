"""Event tables: one row a record, in the manner of NONMEM. `RULES` lists what holds in one and how to mend it."""

from neuralpk.tables.faults import RULES, DataError, DataWarning, Finding
from neuralpk.tables.frames import is_parquet
from neuralpk.tables.parquet_parts import ParquetParts, TablePart
from neuralpk.tables.table_reading import read_table
from neuralpk.tables.writing import to_frame, write_table

__all__ = [
    "RULES",
    "DataError",
    "DataWarning",
    "Finding",
    "ParquetParts",
    "TablePart",
    "is_parquet",
    "read_table",
    "to_frame",
    "write_table",
]
