#!/usr/bin/env bash
# A shared MLflow server on this machine: serve.sh OUT [PORT [HOST]]
#
# Runs, metrics and artefacts are kept in OUT, unless MLflow's own variables name other places:
#   MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://mlflow@127.0.0.1/mlflow    with the password in PGPASSWORD
#   MLFLOW_ARTIFACTS_DESTINATION=s3://bucket/folder
# With MLFLOW_AUTH_ADMIN_PASSWORD set (12 characters at least) everybody must log in, from then on with this OUT;
# only then may HOST be another than 127.0.0.1. Logging in needs the package mlflow[auth].
set -euo pipefail

if [[ $# -lt 1 || $# -gt 3 || -z $1 || ! ${2:-5000} =~ ^[0-9]+$ ]]; then
    echo "usage: serve.sh OUT [PORT [HOST]]    OUT: folder of the database and the artefacts; PORT: 5000 by default" >&2
    exit 2
fi
if [[ $PWD/$1 == *[%?#]* ]]; then
    echo "serve.sh: $1: a database uri cannot hold % ? #; choose another folder" >&2
    exit 2
fi
host=${3:-127.0.0.1}
login=
[[ -z ${MLFLOW_AUTH_ADMIN_PASSWORD:-} && ! -e $1/users.db ]] || login=yes
if [[ -z $login && $host != 127.* && $host != localhost && $host != ::1 ]]; then
    echo "serve.sh: $host: others can reach this address; set MLFLOW_AUTH_ADMIN_PASSWORD so that they must log in" >&2
    exit 2
fi
mkdir -p -- "$1"
out=$(cd -- "$1" && pwd)

# In the environment, not on the command line, which everybody on this machine can read.
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$out/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$out/artifacts}
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
# Tracking needs none of MLflow's eight background workers.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

set -- --host "$host" --port "${2:-5000}" --workers 1
if [[ -n $login ]]; then
    set -- "$@" --app-name basic-auth
    umask 077
    printf '%s\n' '[mlflow]' 'admin_username = admin' 'default_permission = READ' \
        "database_uri = sqlite:///$out/users.db" > "$out/login.ini"
    [[ -s $out/session_key ]] || head -c 32 /dev/urandom | base64 > "$out/session_key"
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(< "$out/session_key")
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH=$out/login.ini
fi

exec mlflow server "$@"
