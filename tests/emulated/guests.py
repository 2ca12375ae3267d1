# SPDX-License-Identifier: GPL-2.0
"""For tests in the emulated host: machines of the built QEMU, and Linux guests
in them that take commands on their serial console.  point() prints TAP."""

import contextlib
import errno
import hashlib
import http.server
import json
import os
import re
import select
import socket
import subprocess
import threading
import time

# Which host this is in.
ARM64 = os.uname().machine == "aarch64"
QEMU = "/repo/build/qemu-arm64/qemu-system-aarch64" if ARM64 else "/repo/build/qemu/qemu-system-x86_64"
MACHINE = "virt,gic-version=3" if ARM64 else "q35"
KERNEL = "/repo/build/kernel/guest-arm64-Image" if ARM64 else "/repo/build/kernel/guest-bzImage"
ROOT = "/repo/build/guest-arm64.ext4" if ARM64 else "/repo/build/guest.ext4"
# Where a guest has its RAM; below 1 MiB there is more than RAM on x86.
RAM, FIRST = (1 << 30, 0) if ARM64 else (0, 1 << 20)
MEMORY = 256        # MiB of a guest
# What a guest mounts and starts, and a root on its first disk.
# tsc=nowatchdog: as in scripts/boot-host.
APPEND = (f"console={'ttyAMA0' if ARM64 else 'ttyS0'} tsc=nowatchdog loglevel=4 panic=-1 nokaslr rw init=/sbin/guest-init "
          "guest.run=stty,-echo;echo,console-ready;exec,sh,/dev/console ")


class Failure(Exception):
    """What a point has found wrong."""


class Tap:
    """Points, counted on from first."""

    def __init__(self, first=1):
        self.count, self.failed = first - 1, 0

    @contextlib.contextmanager
    def point(self, name):
        start = time.monotonic()
        self.count += 1
        result, why = "ok", ""
        try:
            yield
        except Exception as error:  # pylint: disable=broad-exception-caught
            result, self.failed = "not ok", self.failed + 1
            why = "".join(f"\n# {line}" for line in (str(error) or repr(error)).splitlines())
        print(f"{result} {self.count} - {name}{why}\n# {time.monotonic() - start:.1f} s", flush=True)


def check(what, why):
    if not what:
        raise Failure(why)


def off_direct_map():
    with open("/sys/kernel/mm/unmapped_pool/off_direct_map_bytes", encoding="ascii") as f:
        return int(f.read())


def attacks(guest, marker, *words):
    """What the host gets of its memory: for each attack whether anything, and a text."""
    done = subprocess.run(["python3", "/repo/tests/emulated/attacks", str(guest.process.pid), "", marker.decode().strip(),
                           *words], stdout=subprocess.PIPE, check=False, text=True)
    check(done.returncode == 0, f"the attacks ended with status {done.returncode}")
    return json.loads(done.stdout)


def vhost_runs(guest):
    """Of its two network devices one is run by vhost in the kernel."""
    return sum("vhost-dev" in guest.must("x-query-virtio-status", path=device["path"])
               for device in guest.must("x-query-virtio") if device["name"] == "virtio-net") == 1


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(size=300000):
    """A file for guests to fetch, at port 8000 of 10.0.2.2 and of 10.9.0.1 on tap0; its SHA-256."""
    os.mkdir("/tmp/www")
    os.chdir("/tmp/www")
    data = os.urandom(size)
    with open("file", "wb") as f:
        f.write(data)
    subprocess.run("ip tuntap add tap0 mode tap && ip addr add 10.9.0.1/24 dev tap0 && ip link set tap0 up",
                   shell=True, check=True)
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hashlib.sha256(data).hexdigest()


class Machine:
    """A QEMU.  Arguments are words in one string or a list of arguments."""

    def __init__(self, name, *args, protected=True, machine=MACHINE, accel="kvm",
                 cpu="host" if ARM64 else "host,-xsave,-tsc-deadline"):
        self.name, self.dir, self.events = name, f"/tmp/{name}", []
        self.log = f"/out/{name}.qemu" if isinstance(self, Console) else f"{self.dir}/log"
        os.mkdir(self.dir)
        self.monitor = None
        words = [word for arg in args for word in (arg.split() if isinstance(arg, str) else arg)]
        if protected:
            machine += ",confidential-guest-support=prot0"
            if not any(word.startswith("kvm-protected-guest") for word in words):
                words = ["-object", "kvm-protected-guest,id=prot0", *words]
        command = [QEMU, "-L", "/usr/share/seabios", "-L", "/usr/share/qemu", "-accel", accel, "-machine", machine,
                   "-cpu", cpu, "-nodefaults", "-display", "none", "-qmp", "unix:qmp,server=on,wait=off", *words]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=dict(os.environ, TMPDIR=self.dir))

    def said(self):
        # 9p has no data, now and then, of a file that is growing.
        for tries in range(20):
            try:
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    return log.read().strip()
            except OSError as error:
                if error.errno != errno.ENODATA or tries == 19:
                    raise
            time.sleep(0.1)

    def alive(self):
        return self.process.poll() is None

    def connect(self, path, seconds=60):
        """A connection to a socket of QEMU, or None if QEMU has ended before."""
        end = time.monotonic() + seconds
        while self.alive():
            check(time.monotonic() < end, f"{self.name}: no socket '{path}' within {seconds} s")
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(f"{self.dir}/{path}")
                return s
            except OSError:
                s.close()
                time.sleep(0.05)
        return None

    def started(self, until=None, seconds=60):
        """Whether QEMU runs its main loop; not if it ends or, before that, says what is given."""
        if self.monitor:
            return True
        s = self.connect("qmp")
        if not s:
            return False
        try:
            s.sendall(b'{"execute":"qmp_capabilities"}')
        except (BrokenPipeError, ConnectionResetError):
            return False    # it listened, and has refused something since
        data, end = b"", time.monotonic() + seconds
        # The greeting is one line, the answer to this another.
        while data.count(b"\n") < 2:
            check(time.monotonic() < end, f"{self.name}: QEMU has not started within {seconds} s: {self.said()}")
            if until and re.search(until, self.said()):
                return False
            if select.select([s], [], [], 0.2)[0]:
                try:
                    part = s.recv(1024)
                except ConnectionResetError:
                    part = b""
                if not part:
                    return False
                data += part
        s.settimeout(120)
        self.monitor = s.makefile("rw", encoding="utf-8")
        return True

    def _message(self):
        line = self.monitor.readline()
        check(line, f"{self.name}: QEMU has ended: {self.said()}")
        return json.loads(line)

    def qmp(self, execute, **arguments):
        """The answer: an object with 'return' or 'error'."""
        check(self.monitor or self.started(), f"{self.name}: QEMU has ended: {self.said()}")
        self.monitor.write(json.dumps({"execute": execute,
                                       "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}) + "\n")
        self.monitor.flush()
        while True:
            answer = self._message()
            if "event" not in answer:
                return answer
            self.events.append(answer)

    def must(self, execute, **arguments):
        answer = self.qmp(execute, **arguments)
        check("return" in answer, f"{execute}: {answer.get('error', {}).get('desc')}")
        return answer["return"]

    def event(self, name):
        """Wait for an event, forget those before it."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event["event"] == name:
                    return event.get("data", {})
            self.events.append(self._message())

    def end(self):
        if self.alive():
            self.process.kill()
        return self.process.wait()


class Console(Machine):
    """A guest whose serial console takes commands, once it has booted."""

    def __init__(self, name, *args, memory=MEMORY, **more):
        self.memory, self.text, self.seen = memory, "", 0
        super().__init__(
            name, f"-m {memory}M -chardev socket,id=serial,path=serial,server=on,wait=on,logfile=/out/{name}.log",
            "-serial chardev:serial", *args, **more)
        self.console = self.connect("serial")
        check(self.console and self.started(), f"{name}: QEMU has ended: {self.said()}")

    def wait(self, pattern, seconds):
        """Wait for a pattern on the console, after what was waited for before."""
        end = time.monotonic() + seconds
        while True:
            match = re.compile(pattern, re.MULTILINE).search(self.text, self.seen)
            if match:
                self.seen = match.end()
                return match
            left = end - time.monotonic()
            tail = "\n".join(self.text.splitlines()[-12:])
            if left <= 0:
                raise Failure(f"{self.name}: no '{pattern.strip()}' within {seconds} s:\n{tail}\n{self.where()}")
            if select.select([self.console], [], [], left)[0]:
                data = self.console.recv(65536)
                check(data, f"{self.name}: QEMU has ended before '{pattern}': {self.said()}\n{tail}")
                self.text += data.decode(errors="replace").replace("\r", "")

    def where(self):
        """Where its CPUs are, twice, to tell a guest that hangs from a slow one."""
        text = self.said() + "\n" + self.must("query-status")["status"]
        for _ in range(2):
            registers = self.must("human-monitor-command", command_line="info registers -a")
            text += "; " + " ".join(re.findall(r"[ER]IP=[0-9a-f]+|HLT=[01]", registers))
            time.sleep(1)
        return text

    def booted(self, seconds=150):
        self.wait("^console-ready", seconds)

    def send(self, command):
        self.console.sendall(command.encode() + b"\n")

    def shell(self, command, seconds=60):
        """Run a command in the guest; what it printed, if it succeeded."""
        # The marks are put together in the guest, lest its echo is taken for them.
        self.send(f"echo =a''bout=; {command}; echo =e''nd=$?")
        self.wait("^=about=\n", seconds)
        start = self.seen
        status = self.wait("^=end=([0-9]+)", seconds)
        output = self.text[start:status.start()].strip()
        check(status[1] == "0", f"{self.name}: status {status[1]} of '{command}': {output}")
        return output

    def fill(self, mib=16):
        """Fill memory with a marker that is new each time."""
        marker = self.shell(f"m=$(cat /proc/sys/kernel/random/uuid); yes life-$m | head -c {mib << 20} >/run/marker; "
                            "echo $m")
        check(re.fullmatch("[0-9a-f-]{36}", marker), f"no marker: {marker}")
        return f"life-{marker}\n".encode()

    def save(self, start=FIRST, size=None):
        """pmemsave of RAM, to its end if no size is given: what it wrote, and its answer."""
        path = f"{self.dir}/memory"
        answer = self.qmp("pmemsave", val=RAM + start, size=size or (self.memory << 20) - start, filename=path)
        data = b""
        if os.path.exists(path):
            with open(path, "rb") as f:
                data = f.read()
            os.unlink(path)
        return data, answer

    def gdb(self, packet):
        """The answer of the gdb stub, which stops the guest meanwhile."""
        s = self.connect("gdb")
        s.settimeout(30)
        with s:
            for packet in (packet if isinstance(packet, list) else [packet]):
                s.sendall(b"$%s#%02x" % (packet.encode(), sum(packet.encode()) % 256))
                data = b""
                while not (match := re.search(rb"\$([^#]*)#..", data)):
                    part = s.recv(4096)
                    check(part, "the gdb stub has closed the connection")
                    data += part
                s.sendall(b"+")
        self.qmp("cont")
        return match[1].decode()


class Guest(Console):
    """A guest that boots from its disk, by default with a kernel given to QEMU.  The kernel is also
    on a second disk."""

    def __init__(self, name, *args, append="", kernel=True,
                 disks="-device virtio-blk-pci,drive=root -device virtio-blk-pci,drive=kernel", **more):
        if kernel:
            args += ("-kernel " + KERNEL, ["-append", APPEND + "root=/dev/vda " + append])
        super().__init__(
            name, "-smp 2 -gdb unix:gdb,server=on,wait=off",
            # The firmware waits, so that there is time to look at memory.
            "-boot menu=on,splash-time=3000",
            f"-drive file={ROOT},id=root,if=none,format=raw,snapshot=on",
            f"-drive file={KERNEL},id=kernel,if=none,format=raw,readonly=on,file.locking=off",
            "-netdev user,id=user -device virtio-net-pci,netdev=user,romfile= -device virtio-rng-pci",
            disks, *args, **more)
