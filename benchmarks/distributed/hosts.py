"""Meta-training on several hosts, of which one is cut off from the network.

python benchmarks/distributed/hosts.py --out_dir=benchmarks/results/distributed

The hosts are namespaces of this machine, each with an address and a temporary folder of its own.
In the first are the head of a Ray cluster and the driver, in each of the others a node with one
worker. The network of one node is cut for longer than Ray's heartbeat, and comes back. Where the
kernel does not let this process make namespaces, nothing is done, and the figures say why.
"""

import contextlib
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time

import runs
from absl import app, flags, logging

from meta import provenance, smoke
from meta.training import run

_OUT_DIR = flags.DEFINE_string("out_dir", "out/distributed", "For the figures.")
_NODES = flags.DEFINE_integer("nodes", 2, "Besides the head.", lower_bound=2, upper_bound=200)
_STEPS = flags.DEFINE_integer("steps", 50, "Outer steps of the run.", lower_bound=10)
_CUT = flags.DEFINE_float("cut", 45.0, "Seconds for which a node is cut off.", lower_bound=0.0)
_NAMESPACES = flags.DEFINE_bool("namespaces", True, "Whether to try; if not, nothing is done.")
smoke.define(namespaces=False)

_INSIDE = "LOPT_INSIDE_NAMESPACES"
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
_HEAD, _PORT = "10.99.0.1", 6379
_HEARTBEAT = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that does not answer for about 20 seconds is lost."""


def refusal():
    """Why there are no namespaces here; None if there are."""
    if not _NAMESPACES.value:
        return "--nonamespaces"
    try:
        done = subprocess.run([*_UNSHARE, "ip", "link"], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


def do(*command):
    subprocess.run(command, check=True)


class Host:
    """A namespace with an address, and a link to the first one.

    Args:
        index: of the host, from 1.
        ray_folder: where Ray has its sockets and logs: one folder for each host, of this name.
        stack: `ExitStack`, at the end of which it is gone.
    """

    def __init__(self, index, ray_folder, stack):
        self._link = f"host{index}"
        holder = ["unshare", "--net", "--mount", "sleep", "inf"]
        self._holder = stack.enter_context(subprocess.Popen(holder))
        stack.callback(self._holder.kill)
        while os.readlink(f"/proc/{self._holder.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            time.sleep(0.01)
        self.do("mount", "-t", "tmpfs", "tmpfs", ray_folder)
        self.address, gateway = f"10.99.{index}.2", f"10.99.{index}.1"
        do(
            "ip",
            "link",
            "add",
            self._link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self._holder.pid),
        )
        do("ip", "address", "add", f"{gateway}/24", "dev", self._link)
        do("ip", "link", "set", self._link, "up")
        self.do("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.do("ip", "link", "set", device, "up")
        self.do("ip", "route", "add", "default", "via", gateway)

    def _inside(self, command):
        return ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", *command]

    def do(self, *command):
        """Runs a command on the host."""
        do(*self._inside(command))

    def start(self, command, log):
        """Starts a command on the host; its process."""
        return subprocess.Popen(self._inside(command), stdout=log, stderr=log)

    def cut(self, seconds):
        """Cuts its network for some time."""
        do("ip", "link", "set", self._link, "down")
        time.sleep(seconds)
        do("ip", "link", "set", self._link, "up")


def ray_command(*arguments):
    folder = os.path.dirname(sys.executable)
    return [os.path.join(folder, "ray"), "start", *arguments, "--block", "--disable-usage-stats"]


@contextlib.contextmanager
def cluster(log, ray_folder):
    """A Ray cluster whose head is on this host: list of the other `Host`s."""
    os.mkdir(ray_folder)
    # `ray start` asks for a token if a Ray of this machine has ever left one, but the driver shows
    # none to an address that is spelled out. So all get the same.
    os.environ.update(_HEARTBEAT, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    do("ip", "link", "set", "lo", "up")
    do("ip", "address", "add", f"{_HEAD}/32", "dev", "lo")
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="utf-8") as f:
        f.write("1")
    with contextlib.ExitStack() as stack:
        hosts = [Host(i + 1, ray_folder, stack) for i in range(_NODES.value)]
        own = f"--node-ip-address={_HEAD}", f"--port={_PORT}", "--num-cpus=0"
        own = *own, f"--temp-dir={ray_folder}", "--include-dashboard=false"
        head = ray_command("--head", *own)
        started = [subprocess.Popen(head, stdout=log, stderr=log)]
        stack.callback(lambda: [process.kill() for process in started])
        time.sleep(1.0)
        for host in hosts:
            own = f"--node-ip-address={host.address}", f"--address={_HEAD}:{_PORT}"
            started.append(host.start(ray_command(*own, "--num-cpus=1"), log))
        yield hosts


def wait_for_nodes():
    """Until all nodes are there."""
    import ray

    deadline = time.monotonic() + 300.0
    while True:
        with contextlib.suppress(ConnectionError, RuntimeError):
            ray.init(address=f"{_HEAD}:{_PORT}", log_to_driver=False, logging_level=logging.ERROR)
            break
        if time.monotonic() > deadline:
            raise RuntimeError("The head of the cluster has not started in 5 minutes.")
        time.sleep(1.0)
    while ray.cluster_resources().get("CPU", 0) < _NODES.value:
        if time.monotonic() > deadline:
            raise RuntimeError("The nodes of the cluster have not started in 5 minutes.")
        time.sleep(0.5)


def train(folder, num_workers, disturb=None):
    """The digest of theta, the seconds of each outer step, and what the crew tells."""
    address = f"{_HEAD}:{_PORT}" if num_workers else None
    config = runs.config(folder, _STEPS.value, _NODES.value, num_workers, ray_address=address)
    with run.started(config) as training:
        if disturb is not None:
            disturb(training)
        times = runs.times_of_steps(training)
        training.loop.run(_STEPS.value)
        told = dict(training.loop.crew.told())
        return runs.digest(training.loop.theta), times, told


def compare(folder):
    """A run in this process and one on the cluster: dict."""
    expected, *_ = train(os.path.join(folder, "alone"), 0)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(os.path.join(folder, "log"), "w", encoding="utf-8"))
        hosts = stack.enter_context(cluster(log, os.path.join(folder, "ray")))
        wait_for_nodes()
        cuts = []

        def disturb(training):
            def cut():
                cuts.append(time.monotonic())
                hosts[0].cut(_CUT.value)

            runs.at_steps(training, [_STEPS.value // 3], random.Random(0), cut)

        found, times, told = train(os.path.join(folder, "hosts"), _NODES.value, disturb)
    times = sorted(times[1:])  # In the first, the program is compiled.
    return {
        "same_bits": expected == found,
        "theta_sha256": found,
        "cuts": len(cuts),
        "seconds_cut": _CUT.value,
        "longest_step_seconds": round(times[-1], 1),
        "median_step_seconds": round(times[len(times) // 2], 3),
        **told,
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    reason = None if os.environ.get(_INSIDE) else refusal()
    if reason is None and not os.environ.get(_INSIDE):
        command = [*_UNSHARE, sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, _INSIDE: "1"}).returncode)
    if reason is None:
        setting = {"outer_steps": _STEPS.value, "nodes": _NODES.value, **runs.SETTING}
        with tempfile.TemporaryDirectory() as folder:
            content = {"setting": setting, **compare(folder)}
    else:
        content = {"skipped": reason}
    print(content)
    provenance.write_results(os.path.join(_OUT_DIR.value, "hosts.json"), content)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
