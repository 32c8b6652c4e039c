"""Two hosts on one machine: each has a network, a host name, a process tree and an sshd of its own.

Everything of a host is in namespaces that end with their first process, and that ends with ours, however it ends. Files
are in the folder given; what a host sees under /etc and /run is mounted over for the host alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mvtrain.launchers import VARIABLES
from tests.distributed.runs import ROOT

NETWORK = "10.213.7"
DEVICE = "cluster0"
SSH_PORT = 2222

PACKAGES = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}

RECORD_NAMESPACE = """
import os, pathlib, socket
if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
    report = " ".join([socket.gethostname(), os.readlink("/proc/self/ns/net"), os.environ.get("FROM_ENV_FILE", "-")])
    (pathlib.Path(__file__).parent / ("rank-" + os.environ["RANK"])).write_text(report)
"""


def why_no_hosts() -> str | None:
    """What is missing here, or None."""
    missing = sorted({package for program, package in PACKAGES.items() if _which(program) is None})
    if missing:
        return f"needs {', '.join(missing)} (apt-get install {' '.join(missing)})"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"namespaces are not permitted here: {tried.stderr.strip()}"
    return None


NAMESPACES = ("--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    pid: int
    """Its first process, as we see it."""

    def command(self, *words: str) -> list[str]:
        """Run on this host what is run here."""
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid", "--", *words]

    def run(self, *words: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=300, **options)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[list[Host]]:
    """`node1` and `node2`, joined by a cable, each with an sshd that lets `ssh` of `environment()` in."""
    _write_files(folder)
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(_host(folder, number)) for number in (1, 2)]
        ends = [[DEVICE, "netns", str(host.pid)] for host in hosts]
        _do(["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]])
        for host in hosts:
            _do(host.command("ip", "address", "add", f"{host.address}/24", "dev", DEVICE))
            _do(host.command("ip", "link", "set", DEVICE, "up"))
            _do(host.command(str(_which("sshd")), "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")))
        for host in hosts:
            _await_ssh(hosts[0], host, folder)
        yield hosts


def environment(folder: Path) -> dict[str, str]:
    """Ours, with our own ssh, no variables of a launcher, and ranks that record where they run."""
    paths = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'records'}{os.pathsep}{ROOT}",
        "DS_ENV_FILE": str(folder / "deepspeed_env"),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    dropped = (*VARIABLES, "LOCAL_SIZE", "GLOO_SOCKET_IFNAME")
    return {name: value for name, value in os.environ.items() if name not in dropped} | paths


def records(folder: Path) -> list[list[str]]:
    """Host name, network namespace and FROM_ENV_FILE of each rank that ran since the last call."""
    files = sorted((folder / "records").glob("rank-*"))
    found = [file.read_text().split() for file in files]
    for file in files:
        file.unlink()
    return found


def _write_files(folder: Path) -> None:
    for name in ("bin", "records"):
        (folder / name).mkdir()
    (folder / "records" / "sitecustomize.py").write_text(RECORD_NAMESPACE)
    for name in ("host_key", "user_key"):
        _do(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    names = [(f"{NETWORK}.{number}", f"node{number}") for number in (1, 2)]
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"[{address}]:{SSH_PORT} {key}" for address, _ in names))
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for _, name in names))
    for number, (_, own) in enumerate(names):
        # As Debian has it: a host's own name is an address that the other host cannot use.
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {own}", *(f"{a} {n}" for a, n in names if n != own)]
        (folder / f"hosts-{number + 1}").write_text("\n".join(lines) + "\n")
    (folder / "sshd_config").write_text(
        f"Port {SSH_PORT}\nHostKey {folder / 'host_key'}\nAuthorizedKeysFile {folder / 'authorized_keys'}\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    hosts = "".join(f"Host {name}\n  HostName {address}\n" for address, name in names)
    (folder / "ssh_config").write_text(
        f"{hosts}Host *\n  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
    )
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {_which("ssh")} -F {shlex.quote(str(folder / "ssh_config"))} "$@"\n')
    ssh.chmod(0o755)
    (folder / "deepspeed_env").write_text(
        f"GLOO_SOCKET_IFNAME={DEVICE}\nOMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\nFROM_ENV_FILE=yes\n"
    )


@contextlib.contextmanager
def _host(folder: Path, number: int) -> Iterator[Host]:
    name = f"node{number}"
    setup = (
        f"hostname {name} && mount --bind {shlex.quote(str(folder / f'hosts-{number}'))} /etc/hosts && "
        "mount -t tmpfs tmpfs /run && mkdir /run/sshd && ip link set lo up && echo ready && exec cat"
    )
    # It ends when its standard input does.
    keeper = subprocess.Popen(
        ["unshare", *NAMESPACES, "sh", "-c", setup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert keeper.stdout.readline() == "ready\n", f"{name} did not start"
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        yield Host(name, f"{NETWORK}.{number}", int(children[0]))
    finally:
        keeper.stdin.close()
        try:
            keeper.wait(timeout=10)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()


def _await_ssh(source: Host, target: Host, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        done = source.run("ssh", "-p", str(SSH_PORT), target.name, "hostname", env=environment(folder))
        if done.stdout.strip() == target.name:
            return
        log = (folder / "sshd.log").read_text() if (folder / "sshd.log").exists() else ""
        assert time.monotonic() < deadline, f"no ssh to {target.name}: {done.stderr}\n{log}"
        time.sleep(0.2)


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
