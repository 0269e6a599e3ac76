"""`rlhf-audit verify --open`: this installation's own copy of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from rlhf_audit_trail.ledger.page import page


def test_it_names_the_page_and_hands_it_to_the_browser(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/asked\n', "utf-8")
    browser.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_audit_trail.cli", "verify", "--open"],
        env=os.environ | {"BROWSER": str(browser)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    address = done.stdout.strip()
    assert Path(url2pathname(urlsplit(address).path)).read_bytes() == page()
    assert (tmp_path / "asked").read_text("utf-8").strip() == address
