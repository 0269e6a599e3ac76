"""Runs the trainers' tests with another TRL: `python tests/train/other_trl.py 0.24.0`.

The other TRL, and what it needs in place of the pinned versions, goes into an environment
that is thrown away; everything else is taken from the one this runs in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

# What came out with it: later ones no longer have what it imports.
COMPANIONS = {
    "0.24.0": (
        "transformers==4.57.1", "huggingface_hub==0.36.2", "tokenizers==0.22.2", "datasets==4.4.1",
    ),
}  # fmt: skip
TESTS = ("tests/train/test_trl.py", "tests/train/test_trl_traps.py")


def main(version: str) -> int:
    """Make the environment, run the tests in it, and return their exit code."""
    with tempfile.TemporaryDirectory(prefix="other-trl-") as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder) / "bin" / "python"
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        place = subprocess.check_output([python, "-c", ask], text=True).strip()
        # found behind what is installed there
        base = sysconfig.get_path("purelib")
        Path(place, "zz_base.pth").write_text(f"import site; site.addsitedir({base!r})\n", "utf-8")
        wanted = [f"trl=={version}", *COMPANIONS.get(version, ())]
        subprocess.check_call(
            [sys.executable, "-m", "pip", "--python", python, "install", "--quiet",
             "--ignore-installed", "--no-deps", *wanted]
        )  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
