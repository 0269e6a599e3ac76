#!/bin/sh
# Install halmos and slither, each into an environment of its own below contracts/.audit.
# Both are AGPL: they are run as programs, and nothing of ours imports them. Apart from each
# other and from the project's own environment, since each wants other versions of web3.
set -eu
python=$1
cd "$(dirname "$0")"
audit=.audit
for tool in halmos==0.3.3 slither-analyzer==0.11.6; do
  venv=$audit/${tool%%=*}
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "$tool"
done

# halmos 0.3.3 declares the argument of SHA-256 with as many bits as it has bytes, and then stops
# at the first hash ("Sort mismatch"). The line is corrected in the installed copy.
"$audit/halmos/bin/python" - <<'PATCH'
import importlib.util
from pathlib import Path

file = Path(importlib.util.find_spec("halmos").origin).with_name("sevm.py")
text = file.read_text("utf-8")
wrong = 'f"f_sha256_{arg_size}", BitVecSorts[arg_size], BitVecSort256'
right = 'f"f_sha256_{arg_size}", BitVecSorts[8 * arg_size], BitVecSort256'
if right not in text:
    if text.count(wrong) != 1:
        raise SystemExit(f"{file} is not the halmos that this correction was made for")
    file.write_text(text.replace(wrong, right), "utf-8")
PATCH
touch "$audit/.installed"
