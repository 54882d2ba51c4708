#!/usr/bin/env bash
# Mount the local NVMe drives of an AWS instance as one folder for scratch: sudo mount_nvme.sh FOLDER OWNER
#
# What was on drives that are not mounted is lost. A folder that is a mount already is left as it is.
set -euo pipefail

if [[ $# -ne 2 || $1 != /* ]]; then
    echo "usage: mount_nvme.sh FOLDER OWNER    FOLDER: absolute" >&2
    exit 2
fi
mountpoint --quiet "$1" && exit
mkdir -p "$1"

if mountpoint --quiet /opt/dlami/nvme; then # images for deep learning mount them by themselves
    mount --bind /opt/dlami/nvme "$1"
else
    mapfile -t drives < <(lsblk --nodeps --noheadings --paths --output NAME,MODEL | awk '/Instance Storage/ { print $1 }')
    case ${#drives[@]} in
        0)
            echo "mount_nvme.sh: no local NVMe drive here; choose a type of instance that has one" >&2
            exit 1
            ;;
        1) device=${drives[0]} ;;
        *)
            device=/dev/md/scratch
            mdadm --create "$device" --run --level=0 --raid-devices=${#drives[@]} "${drives[@]}"
            ;;
    esac
    mkfs.ext4 -q -F "$device"
    mount --options noatime "$device" "$1"
fi
chown "$2" "$1"
