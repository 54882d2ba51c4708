"""The files that clusters and servers are made of: cluster.yaml, KubeRay's, those of tracking/."""

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mbs_ray.run.sweep_spec import load_sweep

ROOT = Path(__file__).parents[2]
SECRET = re.compile(r"(?i)(password|token|secret|key)\w*\s*[:=]\s*['\"]?(?!\$\{)[0-9a-z/+]{12,}")


def launched() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def on_premise() -> dict[str, Any]:
    """The cluster file with its last comment in force."""
    text = (ROOT / "cluster.yaml").read_text()
    lines = text[text.index("# provider:\n#   type: local") :].splitlines()
    instead = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines))
    replaced = ("max_workers", "head_node_type", "available_node_types")
    return {**{key: value for key, value in launched().items() if key not in replaced}, **instead}


@pytest.mark.parametrize("config", [launched(), on_premise()], ids=["aws", "on-premise"])
def test_the_cluster_file_is_valid_for_rays_launcher(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    for start in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in start[-1] and "ray start" in start[-1]
        assert not any("ray start" in line for line in start[:-1])
    assert sum(node["min_workers"] for node in prepared["available_node_types"].values()) > 0
    for source in prepared["file_mounts"].values():
        assert source == "~/.ray/auth_token" or (ROOT / source).is_file()


def test_the_cluster_file_opens_no_port_and_holds_no_secret() -> None:
    config = launched()
    text = (ROOT / "cluster.yaml").read_text()
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert set(config["provider"]["security_group"]) == {"GroupName"}
    assert "0.0.0.0" not in text and "disabled" not in text
    assert not SECRET.search(text)
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


def test_the_cluster_has_the_gpus_and_the_torch_that_are_asked_for() -> None:
    config = launched()
    installs = [line for line in config["setup_commands"] if "pip install" in line and "constraints" in line]
    assert [line.split()[-1] for line in installs] == ["torch", "~/mbs/pyproject.toml"]
    nodes = config["available_node_types"]
    gpus = {"g6e.12xlarge": 4, "p4de.24xlarge": 8}
    up = {name: gpus[nodes[name]["node_config"]["InstanceType"]] for name in ("gpu-48gb", "gpu-80gb")}
    assert up["gpu-48gb"] * nodes["gpu-48gb"]["min_workers"] >= stages("paper")
    assert up["gpu-80gb"] == stages("bloom-176b")


def stages(sweep: str) -> int:
    stages = load_sweep(ROOT / "jobs" / "sweeps" / f"{sweep}.yaml").layout.stages
    assert isinstance(stages, int)
    return stages


def run_mount(tmp_path: Path, drives: int, mounted: tuple[str, ...] = ()) -> tuple[int, list[str], str]:
    """What the script does on a machine with such drives: exit code, commands, what it says."""
    listed = "".join(f"/dev/nvme{drive}n1 Amazon EC2 NVMe Instance Storage\n" for drive in range(1, drives + 1))
    answers = {
        "mountpoint": f'case "{" ".join(mounted)}" in *"$2"*) exit 0 ;; esac; exit 1',
        "lsblk": f"printf '%s' '/dev/nvme0n1 Amazon Elastic Block Store\n{listed}'",
        **{command: f'echo {command} "$@" >> {tmp_path}/log' for command in ("mdadm", "mkfs.ext4", "mount", "chown")},
    }
    tools = tmp_path / "tools"
    tools.mkdir()
    for command, answer in answers.items():
        (tools / command).write_text(f"#!/bin/sh\n{answer}\n")
        (tools / command).chmod(stat.S_IRWXU)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [ROOT / "jobs" / "mount_nvme.sh", str(tmp_path / "nvme"), "ubuntu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    log = tmp_path / "log"
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


def test_local_drives_become_one_folder(tmp_path: Path) -> None:
    code, commands, _ = run_mount(tmp_path, drives=2)
    assert code == 0
    assert [command.split()[0] for command in commands] == ["mdadm", "mkfs.ext4", "mount", "chown"]
    assert commands[0].endswith("--level=0 --raid-devices=2 /dev/nvme1n1 /dev/nvme2n1")
    assert commands[2].endswith(f"/dev/md/scratch {tmp_path}/nvme")


@pytest.mark.parametrize(
    ("drives", "mounted", "code", "first"),
    [
        (1, (), 0, ["mkfs.ext4", "-q", "-F", "/dev/nvme1n1"]),
        (2, ("/opt/dlami/nvme",), 0, ["mount", "--bind", "/opt/dlami/nvme"]),
        (0, (), 1, []),
    ],
)
def test_local_drives_are_taken_as_they_are_found(
    drives: int, mounted: tuple[str, ...], code: int, first: list[str], tmp_path: Path
) -> None:
    done, commands, _ = run_mount(tmp_path, drives, mounted)
    assert done == code
    assert (commands[0].split()[: len(first)] if commands else []) == first


def test_a_folder_that_is_mounted_is_left_as_it_is(tmp_path: Path) -> None:
    assert run_mount(tmp_path, 2, (str(tmp_path / "nvme"),))[:2] == (0, [])


def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "jobs" / "kuberay" / "rayjob.yaml").read_text())


def test_the_rayjob_runs_a_sweep_with_a_gpu_per_stage() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    python, script, sweep, out, results, option = job["spec"]["entrypoint"].split()
    assert (python, out, option) == ("python", "--out", "--take-over")
    assert Path(results).is_absolute()
    assert (ROOT / Path(script).relative_to("/opt/mbs_ray")) == ROOT / "jobs" / "sweep.py"
    assert Path(sweep).parent == Path("/opt/mbs_ray/jobs/sweeps")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    assert workers["replicas"] * worker["resources"]["limits"]["nvidia.com/gpu"] == stages(Path(sweep).stem)
    assert worker["resources"]["limits"] == worker["resources"]["requests"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_rayjob_shares_a_volume_and_gives_workers_a_drive() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"] == {"claimName": "mbs-shared"}
        assert set(mounts.values()) == set(volumes)
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert "emptyDir" in {volume["name"]: volume for volume in pod["volumes"]}["nvme"]


def test_the_rayjob_takes_its_token_from_a_secret_and_is_not_public() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "mbs-ray-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    text = (ROOT / "jobs" / "kuberay" / "rayjob.yaml").read_text()
    assert not re.search(r"NodePort|LoadBalancer|[Ii]ngress|hostNetwork|hostPort", text)
    assert not SECRET.search(text)


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


def test_images_have_the_pinned_versions() -> None:
    ray = pinned("ray")
    kuberay = (ROOT / "jobs" / "kuberay" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{ray}-py311-gpu\n" in kuberay
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == ray
    assert f'"mlflow[auth]=={pinned("mlflow")}"' in (ROOT / "tracking" / "Dockerfile").read_text()
    for source in re.findall(r"^COPY --chown=ray:users (.+) \S+$", kuberay, re.MULTILINE):
        assert all((ROOT / part).exists() for part in source.split())


def test_what_a_job_takes_along_holds_the_code_and_no_password() -> None:
    runtime_env = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    left_out = {ROOT / pattern.removeprefix("/") for pattern in runtime_env["excludes"]}
    assert all(folder.is_dir() for folder in left_out)
    assert not left_out & {ROOT / "mbs_ray", ROOT / "jobs"}
    assert list(runtime_env["env_vars"]) == ["RAY_JOB_STOP_WAIT_TIME_S"]


def test_the_shared_server_takes_every_password_from_a_file_that_is_not_committed() -> None:
    folder = ROOT / "tracking"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    database, server = compose["services"]["database"], compose["services"]["mlflow"]
    passwords = [
        database["environment"]["POSTGRES_PASSWORD"],
        server["environment"]["PGPASSWORD"],
        server["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"],
    ]
    required = [re.fullmatch(r"\$\{(\w+):\?.+\}", password) for password in passwords]
    example = (folder / "example.env").read_text()
    given = dict(line.split("=") for line in re.findall(r"^\w+=.*$", example, re.MULTILINE))
    assert {match[1] for match in required if match} == set(given) and all(required)
    assert set(given.values()) == {""}
    assert ".env" in (folder / ".gitignore").read_text().splitlines()
    assert (folder / ".dockerignore").read_text().splitlines() == ["*", "!serve.sh"]
    assert not any(SECRET.search(path.read_text()) for path in folder.iterdir() if path.name != ".env")


def test_the_shared_server_is_on_loopback_and_its_database_on_no_port() -> None:
    compose = yaml.safe_load((ROOT / "tracking" / "compose.yaml").read_text())
    database, server = compose["services"]["database"], compose["services"]["mlflow"]
    assert "ports" not in database and compose["networks"]["inside"] == {"internal": True}
    assert database["networks"] == ["inside"]
    assert server["ports"] == ["${LISTEN:-127.0.0.1}:${PORT:-5000}:5000"]
    assert server["environment"]["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://mlflow@database/mlflow"
    assert 'CMD ["serve.sh", "/data", "5000", "0.0.0.0"]' in (ROOT / "tracking" / "Dockerfile").read_text()
