"""The written-down draws: the package makes them still, and another language makes them, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf_audit_trail.ledger.chain.contract.build import node_on_path

HERE = Path(__file__).parent
VECTORS = HERE / "draw_vectors.json"


def test_the_package_still_draws_what_is_written_down() -> None:
    command = [sys.executable, str(HERE / "make_vectors.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_draw_follows_from_the_description_alone() -> None:
    """Node shares no code with the package, only the text of its docstrings."""
    with node_on_path():
        node = str(shutil.which("node"))
    done = subprocess.run(
        [node, str(HERE / "redraw.mjs"), str(VECTORS)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    vectors = json.loads(VECTORS.read_text())
    draws = sum(len(vector["draws"].split()) + 1 for vector in vectors["draws"])
    words = sum(len(vector["words"]) for vector in vectors["words"])
    assert int(done.stdout) == draws + words + len(vectors["slots"]) + len(vectors["thresholds"])
    assert draws > 3000


def test_a_changed_vector_is_noticed(tmp_path: Path) -> None:
    vectors = json.loads(VECTORS.read_text())
    last = vectors["draws"][-1]
    last["next_word"] = f"{int(last['next_word'], 16) ^ 1:016x}"
    (tmp_path / "changed.json").write_text(json.dumps(vectors))
    with node_on_path():
        node = str(shutil.which("node"))
    done = subprocess.run(
        [node, str(HERE / "redraw.mjs"), str(tmp_path / "changed.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "words taken" in done.stderr
