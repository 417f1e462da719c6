"""Two processes may share a folder: what one is writing now is not the other's to remove."""

import os
import time
from pathlib import Path

from margincast.cli.job import ABANDONED, Job


def test_only_parts_that_nobody_writes_any_more_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".margins.old.part", tmp_path / ".margins.young.part"
    for part in (old, young):
        part.touch()
    past = time.time() - 2 * ABANDONED
    os.utime(old, (past, past))
    Job("train", {}, tmp_path, json=False, quiet=True, finished=False).write_config()
    assert young.is_file()
    assert not old.exists()
