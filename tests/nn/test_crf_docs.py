"""docs/crf.md: its example runs and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "crf.md"


def test_example_prints_what_the_document_shows():
    text = DOCUMENT.read_text(encoding="utf-8")
    code, output = re.search(r"```python\n(.*?)```\n```\n(.*?)```", text, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, DOCUMENT.name, "exec"), {"__name__": "example"})
    assert printed.getvalue().splitlines() == output.splitlines()
