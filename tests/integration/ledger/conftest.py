import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that can be had: the disk that may fail is simulated, the real one only costs time."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
