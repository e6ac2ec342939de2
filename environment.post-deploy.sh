#!/bin/sh
# Installs the locked packages and this package into the active environment. Run it in the
# repository's root.
set -eu
python -m pip install --quiet --require-hashes -r requirements.lock
python -m pip install --quiet --no-deps --no-build-isolation -e .
