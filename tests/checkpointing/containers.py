"""Containers for tests: a tree of plain files stands for /proc and /sys/fs/cgroup."""

from pathlib import Path

V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
)
UNLIMITED_V1 = str(2**63 - 4096)


def tree(root: Path, cgroup: str, mountinfo: str, files: dict[str, dict[str, str]]) -> Path:
    """Writes /proc/self and the files of groups by folder; returns the root."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mountinfo}\n")
    for folder, contents in files.items():
        place = root / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (place / name).write_text(f"{text}\n")
    return root


def v2(limit: str, current: int = 0, stat: str = "", high: str = "max") -> dict[str, str]:
    return {"memory.max": limit, "memory.high": high, "memory.current": str(current), "memory.stat": stat}


def v1(limit: str, usage: int = 0, stat: str = "") -> dict[str, str]:
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": str(usage), "memory.stat": stat}


def limited(root: Path, limit: int, used: int = 0) -> Path:
    return tree(root, "0::/\n", V2_MOUNT.format(root="/"), {".": v2(str(limit), used)})
