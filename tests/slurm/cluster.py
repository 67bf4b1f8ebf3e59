"""A Slurm cluster of one node, for tests: without systemd, cgroups or an accounting database."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = Path("/etc/slurm")
GPUS = ("/dev/null", "/dev/zero")  # each has to be a device of its own

# More than this machine has, so that tests decide what runs at the same time.
CPUS, MEMORY_MB = 4, 64000
# Between SIGTERM and SIGKILL at a job's time limit.
KILL_WAIT_SECONDS = 10

SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that was requeued may start again when its credential has expired.
AuthInfo=cred_expire=5,socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=512
# Otherwise what no node can give waits for ever.
EnforcePartLimits=ALL
# How long ended jobs can be asked for.
MinJobAge=900
KillWait={kill_wait}
ReturnToService=2
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:fake:{gpus}
PartitionName=cpu Nodes={host} Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=gpu Nodes={host} Default=NO MaxTime=60 DefaultTime=10 State=UP
"""


class Job(NamedTuple):
    """A job as squeue knows it, ended ones too; ``made`` is what Snakemake says that it is for."""

    number: str
    state: str
    reason: str
    made: str
    partition: str
    gres: str
    minutes: str
    memory: str
    user: str
    folder: str


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname()
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring the cluster up; a job has run through it when this returns."""
        for name in ("state", "spool", "log", "munge"):
            (self.folder / name).mkdir(mode=0o755)
        values = {"folder": self.folder, "host": self.host, "cpus": CPUS, "memory": MEMORY_MB}
        values |= {"kill_wait": KILL_WAIT_SECONDS}
        (CONFIG / "slurm.conf").write_text(SLURM.format(gpus=len(GPUS), **values))
        devices = [f"NodeName={self.host} Name=gpu Type=fake File={file}" for file in GPUS]
        (CONFIG / "gres.conf").write_text("\n".join(["AutoDetect=off", *devices, ""]))
        (CONFIG / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self._munged()
        self.controller()
        self._daemon("slurmd", "-D")
        self.until(lambda: self.node() == "idle", "the node is idle")
        run("srun", "--partition=gpu", "--gres=gpu:1", "--mem=100", "true")

    def _munged(self) -> None:
        files = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{name}={self.folder}/munge/{file}" for name, file in files.items()]
        self._daemon("munged", "--foreground", *options)
        socket_file = f"--socket={self.folder}/munge/socket"
        self.until(
            lambda: (
                subprocess.run(["munge", socket_file, "-n"], capture_output=True).returncode == 0
            ),
            "munged answers",
        )

    def controller(self) -> None:
        self._daemon("slurmctld", "-D")
        self.until(lambda: "UP" in run("scontrol", "ping", check=False), "slurmctld answers")

    def _daemon(self, name: str, *options: str) -> None:
        # A daemon that had the output of whoever starts it would keep its reader waiting.
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [name, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self, name: str) -> None:
        """End one daemon, by its own process id."""
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def down(self) -> None:
        """End all jobs and daemons, the last one started first."""
        if {"slurmctld", "slurmd"} <= self.daemons.keys():
            left = [job.number for job in self.jobs() if job.state in ("PENDING", "RUNNING")]
            if left:
                run("scancel", *left, check=False)
                time.sleep(1)
        for name in list(reversed(self.daemons)):
            self.stop(name)

    def node(self) -> str:
        return run("sinfo", "-h", "-o", "%T", "-p", "cpu", check=False).strip()

    def jobs(self) -> list[Job]:
        """Every job of this cluster so far, in the order of submission."""
        form = "%i|%T|%r|%k|%P|%b|%l|%m|%u|%Z"
        lines = run("squeue", "-h", "--states=all", "-o", form).splitlines()
        jobs = [Job(*line.split("|")) for line in lines]
        return sorted(jobs, key=lambda job: int(job.number))

    def until(
        self, holds: Callable[[], Any], what: str, seconds: float = 300, every: float = 0.05
    ) -> Any:
        """Wait for something to hold, and return what it gives; fails with the logs."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise AssertionError(f"waited for: {what}; ended: {dead}\n{self.logs()}")
            time.sleep(every)
        return found

    def logs(self) -> str:
        tails = []
        for log in sorted((self.folder / "log").glob("*.log")):
            tails += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:]]
        if shutil.which("squeue") and "slurmctld" in self.daemons:
            tails += ["--- squeue", run("squeue", "--states=all", check=False)]
        return "\n".join(tails)


def run(*command: str, check: bool = True) -> str:
    """Standard output of a command; with ``check`` it has to end well."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
