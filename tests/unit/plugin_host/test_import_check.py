"""What is wrong with a plugin's files is told by file and line, and none of its code runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from wkhost.plugin_host.process import IMPORT_CHECK


def check(folder: Path, main: str) -> tuple[int, list[str]]:
    (folder / "main.py").write_text(main)
    command = [sys.executable, str(IMPORT_CHECK), str(folder), "main.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_file_that_is_not_python_is_one_sentence(tmp_path: Path) -> None:
    assert check(tmp_path, "import json\ndef send(:\n") == (
        1,
        ["main.py:2: not Python: invalid syntax"],
    )


def test_own_modules_are_read_too_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("import nowhere_at_all\nraise SystemExit(9)\n")
    assert check(tmp_path, "import words\nimport json\n") == (
        1,
        ["words.py:1: no module named 'nowhere_at_all'"],
    )


def test_an_import_that_may_fail_is_the_author_s_business(tmp_path: Path) -> None:
    source = "try:\n    import nowhere_at_all\nexcept ImportError:\n    pass\n"
    assert check(tmp_path, source) == (0, [])
