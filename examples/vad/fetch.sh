#!/usr/bin/env bash
# Fetches the published weights of Silero VAD (MIT licence) from PyPI into target/silero-vad.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=target/silero-vad
mkdir -p "$folder"
if [[ ! -f "$folder/silero_vad_16k_op15.onnx" ]]; then
    echo "silero-vad==6.2.3 --hash=sha256:7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8" \
        >"$folder/requirements.txt"
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest "$folder" -r "$folder/requirements.txt"
    unzip -q -o -j "$folder"/silero_vad-*.whl 'silero_vad/data/*' -d "$folder"
fi
