"""What the documents show runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "docs/writing-an-engine.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_in_an_empty_folder(page: str, tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL))
    assert code
    (tmp_path / "page.py").write_text(code)
    done = subprocess.run([sys.executable, "-W", "error", "page.py"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_every_file_that_a_page_names_is_there() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name in re.findall(r"`((?:engine|replay|backup|benchmarks|tests|docs)/[\w./-]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for name in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / name).exists(), f"{page.name} links to {name}"
