#!/bin/sh
# Installs the locked packages and this one into the active environment, from the repository's root.
set -eu
python -m pip install --quiet --require-hashes -r requirements.lock
python -m pip install --quiet --no-deps --no-build-isolation -e .
