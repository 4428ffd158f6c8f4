"""Ceph's RADOS gateway on loopback, as plain processes: an S3 server with one monitor and one OSD, which is in memory.

What Ceph's documentation calls a manual deployment, as small as it gets: no manager, one copy of each object.
"""

import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_S = 60

CONFIGURATION = """
[global]
mon host = {monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 2147483648
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint={endpoint}
"""

KEYRING = """
[mon.]
key = {key}
caps mon = "allow *"
[client.admin]
key = {key}
caps mon = "allow *"
caps osd = "allow *"
[osd.0]
key = {key}
caps mon = "allow profile osd"
caps osd = "allow *"
[client.rgw]
key = {key}
caps mon = "allow rw"
caps osd = "allow rwx"
"""


class CephError(Exception):
    """The cluster cannot be started."""


def is_installed() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


class CephGateway:
    """One cluster, its files in ``folder``. Names in the paths must be short: it makes sockets there."""

    def __init__(self, folder: Path, endpoint: str, monitor_port: int) -> None:
        self.folder = folder
        self.monitor = f"[v2:127.0.0.1:{monitor_port}]"
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir(parents=True)
        text = CONFIGURATION.format(folder=folder, endpoint=endpoint.removeprefix("http://"), monitor=self.monitor)
        (folder / "ceph.conf").write_text(text)
        (folder / "keyring").write_text(KEYRING.format(key=self._run("ceph-authtool", "--gen-print-key").strip()))

    def start(self, start: Callable[..., None]) -> None:
        """Start monitor, OSD and gateway by ``start(name, *command)``; the gateway answers some seconds later."""
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", self.monitor, "--fsid", str(uuid.uuid4()), monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        start("ceph-mon", *self._command("ceph-mon", "-f", "-i", "a"))
        self._run("ceph", "osd", "create")
        self._run("ceph-osd", "--mkfs", "-i", "0")
        start("ceph-osd", *self._command("ceph-osd", "-f", "-i", "0"))
        end = time.monotonic() + START_S
        while "1 up" not in self._run("ceph", "osd", "stat"):
            if time.monotonic() > end:
                raise CephError("the OSD is not up")
            time.sleep(0.2)
        start("radosgw", *self._command("radosgw", "-f", "-n", "client.rgw"))

    def add_user(self, key: str, secret: str) -> None:
        """An S3 user who may do all."""
        user = ("--uid", "latentpack", "--display-name", "latentpack", "--access-key", key, "--secret-key", secret)
        self._run("radosgw-admin", "user", "create", *user)

    def _command(self, program: str, *options: str) -> tuple[str, ...]:
        return (program, "-c", str(self.folder / "ceph.conf"), *options)

    def _run(self, program: str, *options: str) -> str:
        try:
            done = subprocess.run(self._command(program, *options), capture_output=True, text=True, timeout=START_S)
        except subprocess.TimeoutExpired as error:
            raise CephError(f"{program} {options[0]} did not end within {START_S} s") from error
        if done.returncode:
            raise CephError(f"{program} {options[0]}: {done.stderr.strip()[-500:]}")
        return done.stdout
