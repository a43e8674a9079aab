"""Captured buckets into files: OpenMetrics text that `promtool` makes blocks of, and CSV for people.

Reads the ledger a dataset and scope at a time, beside a running worker and without one, and changes nothing in it.
Promises that every sample that is meant is in a file, or counted with the reason why it is not; that a folder appears
whole or not at all; that memory does not grow with the number of zones. Knows nothing of the journal and of terminals.
"""

from worker.export.export import Exported, Exporter
from worker.export.files import ExportedFile, Folder, Stream
from worker.export.formats import FORMATS, Format

__all__ = ["FORMATS", "Exported", "ExportedFile", "Exporter", "Folder", "Format", "Stream"]
