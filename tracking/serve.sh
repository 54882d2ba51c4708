#!/usr/bin/env bash
# A shared MLflow server on this machine: serve.sh OUT [PORT]
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 || -z $1 || ! ${2:-5000} =~ ^[0-9]+$ ]]; then
    echo "usage: serve.sh OUT [PORT]    OUT: folder of the database and the artefacts; PORT: 5000 by default" >&2
    exit 2
fi
if [[ $PWD/$1 == *[%?#]* ]]; then
    echo "serve.sh: $1: a database uri cannot hold % ? #; choose another folder" >&2
    exit 2
fi
mkdir -p -- "$1"
out=$(cd -- "$1" && pwd)

export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
# Tracking needs none of MLflow's eight background workers.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --host 127.0.0.1 --port "${2:-5000}" --workers 1 \
    --backend-store-uri "sqlite:///$out/mlflow.db" --artifacts-destination "$out/artifacts"
