"""What is installed is what is in the repository, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_every_module_under_its_import_name_and_leaks_no_other(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("flows", "tasks", "storage", "src"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", source],
        check=True,
        capture_output=True,
        text=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for folder, prefix in (
        ("flows", "stratascope/flows"),
        ("tasks", "stratascope/tasks"),
        ("storage", "stratascope/storage"),
        ("src/stratascope", "stratascope"),
    ):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            linked = folder == "src/stratascope" and inside.parts[0] in ("flows", "tasks", "storage")
            if path.is_file() and not linked and "__pycache__" not in path.parts:
                expected.add(f"{prefix}/{inside.as_posix()}")
    assert installed == expected
