#!/usr/bin/env python3
"""The NGINX module on Debian's NGINX, in front of an origin that is another NGINX: nginx_test.py CLASS...

PITH_BINARY names the program (for its simulator), PITH_NGINX_MODULE the module, which scripts/build_nginx_module.sh builds
where it is not given. Skipped where the packages nginx and nginx-dev are missing.

  PITH_NGINX_REQUESTS=100000 nginx_test.py Survives.test_reloads_and_kills    its long form: a reload each 5 s, and kills
  nginx_test.py --replay TRACE.csv CAPACITY POLICY...   prints what NGINX and the simulator hit of a trace
"""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.environ.get("PITH_BINARY", SOURCE + "/build/release/pith")
BLOCK = 4096
HEADER = 1000  # more than NGINX's header and the origin's take in a cached file


def can_build():
    return shutil.which("nginx") and os.path.exists("/usr/share/nginx/src/configure")


def module():
    given = os.environ.get("PITH_NGINX_MODULE")
    if given:
        return given
    built = subprocess.run([SOURCE + "/scripts/build_nginx_module.sh"], stdout=subprocess.PIPE, text=True, check=True)
    return built.stdout.strip()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(what, seconds=20):
    end = time.time() + seconds
    while time.time() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


class Connection:
    """One of many requests; what comes back is counted and thrown away."""

    def __init__(self, port):
        self.port = port
        self.socket = None
        self.buffer = bytearray(1 << 18)

    def get(self, path):
        """(status, cache status)"""
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), 20)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            some = self.socket.recv(1 << 16)
            if not some:
                raise ConnectionError("closed")
            head += some
        head, rest = head.split(b"\r\n\r\n", 1)
        text = head.decode().lower()
        left = int(re.search(r"content-length: (\d+)", text).group(1)) - len(rest)
        while left > 0:
            count = self.socket.recv_into(self.buffer, min(left, len(self.buffer)))
            if count == 0:
                raise ConnectionError("closed")
            left -= count
        if "connection: close" in text:
            self.close()
        found = re.search(r"x-cache: (\w+)", text)
        return int(text.split()[1]), found.group(1) if found else ""

    def close(self):
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Nginx:
    """A server of its own in a temporary folder."""

    def __init__(self, folder, http, main=""):
        self.folder, self.port = folder, free_port()
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o755)
        self.main = main
        self.write(http)
        self.process = subprocess.Popen(["nginx", "-e", self.log, "-p", folder, "-c", self.conf])
        wait_for(lambda: self.process.poll() is not None or self.answers())
        if self.process.poll() is not None:
            raise AssertionError(self.check().stderr)

    @property
    def conf(self):
        return self.folder + "/nginx.conf"

    @property
    def log(self):
        return self.folder + "/error.log"

    def write(self, http):
        temp = "".join(f"{kind}_temp_path {self.folder}/{kind}_temp;\n" for kind in
                       ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;\n" if os.geteuid() == 0 else ""
        with open(self.conf, "w") as file:
            file.write(f"{user}{self.main}\ndaemon off;\npid {self.folder}/pid;\nerror_log {self.log} notice;\n"
                       f"events {{ worker_connections 512; }}\n"
                       f"http {{\n{temp}access_log off;\nkeepalive_requests 1000000;\n"
                       + http.replace("PORT", str(self.port)) + "\n}\n")

    def answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def check(self):
        return subprocess.run(["nginx", "-t", "-e", "stderr", "-p", self.folder, "-c", self.conf],
                              stderr=subprocess.PIPE, text=True)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def children(self, kind):
        """Process ids, those that are leaving excepted."""
        listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], stdout=subprocess.PIPE, text=True)
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if kind in line and "shutting" not in line]

    def stop(self):
        self.process.send_signal(signal.SIGQUIT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def complaints(self):
        with open(self.log) as file:
            return [line for line in file if re.search(r"\[(warn|error|crit|alert|emerg)\]", line)]


class Origin(Nginx):
    """Objects are files; size(name) says how long they are."""

    def __init__(self, folder):
        self.objects = folder + "/objects"
        os.makedirs(self.objects)
        super().__init__(folder, f"server {{ listen 127.0.0.1:PORT; root {self.objects}; }}", "worker_processes 1;")

    def add(self, name, size):
        path = f"{self.objects}/{name}"
        with open(path, "wb") as file:
            file.truncate(size)


class Cache(Nginx):
    def __init__(self, folder, origin, evict, max_size, workers=2, keys="1m", more=""):
        self.cache, self.origin, self.max_size, self.keys = folder + "/cache", origin, max_size, keys
        self.more = more
        main = f"load_module {module()};\nworker_processes {workers};"
        super().__init__(folder, self.http(evict), main)

    def http(self, evict):
        limit = f"max_size={self.max_size}" if self.max_size else ""
        return f"""
proxy_cache_path {self.cache} levels=1:2 keys_zone=web:{self.keys} {limit} inactive=1h use_temp_path=off
  manager_files=1000 manager_sleep=10ms;
{evict}
server {{
  listen 127.0.0.1:PORT;
  location = /metrics {{ pith_evict_metrics; }}
  location / {{
    proxy_pass http://127.0.0.1:{self.origin.port};
    proxy_cache web;
    proxy_cache_key $uri;
    proxy_cache_valid 200 1h;
    add_header X-Cache $upstream_cache_status;
    {self.more}
  }}
}}"""

    def metrics(self):
        """By name, or by (name, cause or bound)."""
        connection = socket.create_connection(("127.0.0.1", self.port), 10)
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b""
        while some := connection.recv(1 << 16):
            text += some
        connection.close()
        values = {}
        for name, label, value in re.findall(r'pith_evict_(\w+)\{zone="web"(?:,\w+="([^"]*)")?\} ([\d.]+)', text.decode()):
            values[(name, label) if label else name] = float(value)
        return values

    def settle(self):
        """Until the manager has seen all requests and the cache is small enough: nothing moves for .5 s; or for 10 s."""
        last, same = None, 0
        for _ in range(100):
            now = self.metrics()
            same = same + 1 if now == last else 0
            if same == 5:
                break
            last = now
            time.sleep(0.1)
        return now

    def files(self):
        """Blocks and number of the cached files."""
        blocks = count = 0
        for folder, _, names in os.walk(self.cache):
            for name in names:
                if len(name) == 32:
                    status = os.stat(f"{folder}/{name}")
                    blocks += -(-max(status.st_size, status.st_blocks * 512) // BLOCK)
                    count += 1
        return blocks, count


def quantile(metrics, name, share):
    """Upper bound of the bucket in which that share of them ends, in seconds."""
    total = metrics[f"{name}_seconds_count"]
    bounds = sorted((float(label), value) for (of, label), value in
                    ((key, value) for key, value in metrics.items() if isinstance(key, tuple))
                    if of == f"{name}_seconds_bucket" and label != "+Inf")
    return next((bound for bound, value in bounds if value >= share * total), float("inf"))


def processor_seconds(pids):
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def replay(folder, requests, capacity, policy, workers=8):
    """requests: (object, blocks). policy: "stock" for NGINX's own manager, beside LRU in the simulator. Returns hits in
    per cent of NGINX and of the simulator, and the metrics."""
    stock = policy == "stock"
    with open(f"{folder}/trace.csv", "w") as file:
        file.write("time,id,size\n")
        file.writelines(f"{i * 0.001},{o},{blocks * BLOCK}\n" for i, (o, blocks) in enumerate(requests))
    told = json.loads(subprocess.run([BINARY, "sim", "--trace", f"{folder}/trace.csv", "--policy", "lru" if stock else policy, "--capacity",
                                      str(capacity), "--json"], stdout=subprocess.PIPE, check=True).stdout)
    origin = Origin(f"{folder}/origin")
    for name, blocks in dict(requests).items():
        origin.add(name, blocks * BLOCK - HEADER)
    server = Cache(f"{folder}/server", origin, "" if stock else f"pith_evict zone=web policy={policy};", capacity, workers)
    connections = [Connection(server.port) for _ in range(16)]
    hits, began = 0, time.time()
    for i, (name, _) in enumerate(requests):
        status, cached = connections[i % 16].get(f"/{name}")
        assert status == 200, status
        hits += cached == "hit"
    seconds = time.time() - began
    metrics = server.settle()
    metrics["seconds"] = seconds
    metrics["manager"] = processor_seconds(server.children("cache manager"))
    metrics["workers"] = processor_seconds(server.children("worker process"))
    metrics["files"] = server.files()
    for connection in connections:
        connection.close()
    server.stop()
    origin.stop()
    return 100 * hits / len(requests), 100 * told["rows"][0]["hit_ratio"], metrics


def zipf_like(count, seed):
    """Requests for objects of 1 to 16 blocks, large ones now and then, popular ones drifting."""
    state, requests = seed, []
    for i in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        u = (state >> 11) / (1 << 53)
        name = int(1500 * u ** 3) + (i // 2000) * 40
        blocks = 1 + name * 2654435761 % 16 + (30 if name % 11 == 0 else 0)
        requests.append((name, blocks))
    return requests


@unittest.skipUnless(can_build(), "no nginx, or no nginx-dev")
class Base(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = self.temporary.name
        os.chmod(self.folder, 0o755)
        self.servers = []

    def tearDown(self):
        for server in reversed(self.servers):
            server.stop()
        self.temporary.cleanup()

    def start(self, kind, *arguments, **named):
        server = kind(f"{self.folder}/{kind.__name__}{len(self.servers)}", *arguments, **named)
        self.servers.append(server)
        return server

    def assert_consistent(self, server):
        metrics = server.settle()
        blocks, count = server.files()
        self.assertEqual(metrics["cache_bytes"], blocks * BLOCK)
        self.assertEqual(metrics["cache_nodes"], count)
        return metrics


class Decides(Base):
    def control(self, evict):
        """20 small objects, then 14 large ones, then all again: how many of each are still there."""
        origin = self.start(Origin)
        for i in range(20):
            origin.add(f"small{i}", 3000)
        for i in range(14):
            origin.add(f"large{i}", 150000)
        server = self.start(Cache, origin, evict, "1m", workers=1)
        connection = Connection(server.port)
        names = [f"small{i}" for i in range(20)] + [f"large{i}" for i in range(14)]
        for name in names:
            self.assertEqual(connection.get(f"/{name}"), (200, "miss"))
            time.sleep(0.02)
        wait_for(lambda: server.metrics()["cache_bytes"] <= 1 << 20 if evict else server.files()[0] <= 256)
        files = server.files()[1]
        # Only what the first round left is counted.
        kept = [os.path.exists(self.path_of(server, name)) for name in names]
        connection.close()
        self.assertEqual(sum(kept), files)
        return sum(kept[:20]), sum(kept[20:])

    def path_of(self, server, name):
        import hashlib
        key = hashlib.md5(f"/{name}".encode()).hexdigest()
        return f"{server.cache}/{key[-1]}/{key[-3:-1]}/{key}"

    def test_small_objects_survive_large_ones(self):
        small, large = self.control("pith_evict zone=web policy=gdsf;")
        self.assertEqual(small, 20)
        self.assertGreaterEqual(large, 5)

    def test_least_recently_used_ones_go_with_lru(self):
        self.assertEqual(self.control("pith_evict zone=web policy=lru;"), (0, 6))

    def test_what_a_shadow_says_changes_nothing(self):
        self.assertEqual(self.control("pith_evict zone=web policy=gdsf shadow=on;"), (0, 6))
        metrics = self.servers[-1].settle()
        # All small objects go, of which gdsf lets none go, and eight large ones, of which some.
        self.assertGreaterEqual(metrics["shadow_evictions_total"], 28)
        self.assertLess(metrics["shadow_agreed_total"], 10)

    def test_mistakes_are_told(self):
        origin = self.start(Origin)
        server = self.start(Cache, origin, "pith_evict zone=web policy=lru;", "1m", workers=1)
        for evict, message in (
                ("pith_evict zone=wob policy=lru;", "there is no cache with keys_zone=wob"),
                ("pith_evict zone=web policy=lur;", "there is no policy \"lur\"; choose from fifo, lru"),
                ("pith_evict zone=web policy=belady;", "must see the whole trace"),
                ("pith_evict zone=web policy=coldrl model=/nowhere;", "/nowhere"),
                ("pith_evict zone=web policy=coldrl k=33;", "invalid parameter \"k=33\""),
                ("pith_evict zone=web policy=lru sidecar=/x;", "lru has no parameter"),
                ("pith_evict zone=web policy=coldrl model=/y sidecar=/x;", "the sidecar has the model"),
                ("pith_evict zone=web policy=lru k=4;", "lru has no parameter \"k\""),
                ("pith_evict zone=web policy=lru deadline=1ms;", "invalid parameter \"deadline=1ms\""),
                ("pith_evict zone=web policy=lru shadow=maybe;", "invalid parameter"),
                ("pith_evict zone=web shadow=on;", "needs zone= and policy="),
                ("pith_evict zone=web policy=lru; pith_evict zone=web policy=fifo;", "has one already"),
                ("pith_evict_zone name=x:100k; pith_evict zone=web policy=lru;", "at least 1m")):
            server.write(server.http(evict))
            checked = server.check()
            self.assertNotEqual(checked.returncode, 0, evict)
            self.assertIn(message, checked.stderr)
            # A reload that fails leaves the server as it was.
            server.reload()
            connection = Connection(server.port)
            self.assertEqual(connection.get("/nothing")[0], 404)
            connection.close()
        server.write(server.http("pith_evict_zone name=side:4m; pith_evict zone=web policy=coldrl k=8 deadline=400 shadow=off;"))
        self.assertEqual(server.check().returncode, 0)


class Replays(Base):
    def test_hits_are_the_simulators(self):
        requests = zipf_like(7000, 5)
        for policy in ("gdsf-admit", "s3fifo", "learned"):
            with self.subTest(policy):
                folder = f"{self.folder}/{policy}"
                os.mkdir(folder)
                os.chmod(folder, 0o755)
                ours, told, metrics = replay(folder, requests, 300 * 10 * BLOCK, policy)
                self.assertLess(abs(ours - told), 2, f"NGINX {ours:.2f}, simulator {told:.2f}")
                self.assertEqual(metrics["requests_total"], len(requests))
                self.assertAlmostEqual(metrics["hits_total"], ours * len(requests) / 100, delta=0.5)
                self.assertEqual(metrics["cache_bytes"], metrics["files"][0] * BLOCK)
                self.assertEqual(metrics["cache_nodes"], metrics["files"][1])
                self.assertLessEqual(metrics["cache_bytes"], 300 * 10 * BLOCK)
                self.assertGreater(metrics["decisions_total"], 1000)
                self.assertLess(quantile(metrics, "decision", 0.95), 500e-6 + 1e-9)
                self.assertEqual(metrics["fallbacks_total", "drift"], 0)
                self.assertEqual(metrics["lost_requests_total"], 0)


class Survives(Base):
    def load(self, server, stop, problems, seed):
        connection = Connection(server.port)
        state = seed
        while not stop.is_set():
            state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            name = int(800 * ((state >> 11) / (1 << 53)) ** 3)
            try:
                status, _ = connection.get(f"/{name}")
                if status != 200:
                    problems.append(status)
                self.counts[seed] += 1
            except OSError:
                connection.close()  # a worker that was killed
        connection.close()

    def test_reloads_and_kills(self):
        origin = self.start(Origin)
        for i in range(800):
            origin.add(i, (1 + i * 7919 % 24) * BLOCK - HEADER)
        server = self.start(Cache, origin, "pith_evict zone=web policy=gdsf;", 6 << 20, workers=8)
        stop, problems, self.counts = threading.Event(), [], [0] * 4
        clients = [threading.Thread(target=self.load, args=(server, stop, problems, seed)) for seed in range(4)]
        for client in clients:
            client.start()
        wanted, turn = int(os.environ.get("PITH_NGINX_REQUESTS", "2001")), 0
        while turn < 6 or (sum(self.counts) < wanted and turn < 3600):
            time.sleep(1)
            if turn % 5 == 0:
                server.reload()
            elif turn % 5 in (2, 4):
                for pid in server.children("cache manager" if turn % 5 == 2 else "worker process")[:1]:
                    os.kill(pid, signal.SIGKILL)
            turn += 1
        time.sleep(1)
        stop.set()
        for client in clients:
            client.join()
        self.assertEqual(problems, [])
        self.assertGreaterEqual(sum(self.counts), wanted)
        print(f"{sum(self.counts)} requests in {turn} s", file=sys.stderr)
        wait_for(lambda: server.metrics()["cache_bytes"] <= 6 << 20)
        # What a killed worker was about to store may be of no file, or a file of nobody: neither comes from evictions.
        metrics = server.settle()
        blocks, count = server.files()
        self.assertAlmostEqual(metrics["cache_bytes"], blocks * BLOCK, delta=8 * 24 * BLOCK)
        self.assertAlmostEqual(metrics["cache_nodes"], count, delta=8)
        self.assertGreater(metrics["decisions_total"], 100)
        self.assertEqual([line for line in server.complaints() if "pith" in line], [])

    def test_reloads_leave_the_zone_exact(self):
        origin = self.start(Origin)
        for i in range(800):
            origin.add(i, (1 + i * 7919 % 24) * BLOCK - HEADER)
        server = self.start(Cache, origin, "pith_evict zone=web policy=coldrl;", 6 << 20, workers=4)
        stop, problems, self.counts = threading.Event(), [], [0] * 3
        clients = [threading.Thread(target=self.load, args=(server, stop, problems, seed)) for seed in range(3)]
        for client in clients:
            client.start()
        for policy in ("learned", "s3fifo", "gdsf-admit"):
            time.sleep(1)
            server.write(server.http(f"pith_evict zone=web policy={policy};"))
            server.reload()
        time.sleep(1)
        stop.set()
        for client in clients:
            client.join()
        self.assertEqual(problems, [])
        # A manager that is interrupted between marking an object and removing its file may remove what a worker has just stored
        # again, as NGINX's own does; the next request for it heals that.
        connection = Connection(server.port)
        for i in range(800):
            connection.get(f"/{i}")
        connection.close()
        wait_for(lambda: server.metrics()["cache_bytes"] <= 6 << 20)
        metrics = self.assert_consistent(server)
        self.assertEqual(metrics["requests_total"], sum(self.counts) + 800)
        self.assertEqual([line for line in server.complaints() if "pith" in line], [])

    def test_a_full_keys_zone_and_late_answers(self):
        """Without max_size objects are counted; a deadline that nothing meets opens the breaker, and LRU goes on."""
        origin = self.start(Origin)
        for i in range(800):
            origin.add(i, 3 * BLOCK - HEADER)
        server = self.start(Cache, origin, "pith_evict zone=web policy=learned deadline=1;", 1 << 20, workers=1)
        connection = Connection(server.port)
        for turn in range(2):
            for i in range(800):
                self.assertEqual(connection.get(f"/{i}")[0], 200)
        wait_for(lambda: server.metrics()["cache_bytes"] <= 1 << 20)
        metrics = self.assert_consistent(server)
        self.assertGreaterEqual(metrics["fallbacks_total", "timeout"], 5)
        self.assertGreaterEqual(metrics["fallbacks_total", "breaker"], 1)
        connection.close()


class Liar(threading.Thread):
    """Answers what a sidecar is asked as answer(question) says, which may sleep."""

    def __init__(self, path, answer):
        super().__init__(daemon=True)
        self.path, self.answer, self.asked, self.stops = path, answer, 0, False
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(8)
        self.listener.settimeout(0.05)
        self.start()

    def run(self):
        connection = None
        while not self.stops:
            try:
                if connection is None:
                    connection = self.listener.accept()[0]
                    connection.settimeout(0.05)
                question = connection.recv(4096)
                if question:
                    self.asked += 1
                    connection.send(self.answer(question))
                else:
                    connection = self.end(connection)
            except TimeoutError:
                pass
            except OSError:
                connection = self.end(connection)
        self.end(connection)

    @staticmethod
    def end(connection):
        if connection is not None:
            connection.close()

    def stop(self):
        self.stops = True
        self.join()
        self.listener.close()
        os.unlink(self.path)

    @staticmethod
    def parts(question):
        """(sequence, candidates)"""
        return struct.unpack_from("<IIH", question)[1:]


def late_answer(question):
    sequence, count = Liar.parts(question)
    time.sleep(0.005)
    return struct.pack(f"<III{count}f", 1, sequence, (1 << count) - 1, *[1.0] * count)


def no_such_candidate(question):
    sequence, count = Liar.parts(question)
    return struct.pack(f"<III{count}f", 1, sequence, (1 << 31) | (1 << count) - 1, *[1.0] * count)


class Sidecars(Base):
    """Whatever becomes of the process that decides, evictions go on, and clients see nothing."""

    OBJECTS, LIMIT = 600, 6 << 20

    def sidecar(self):
        process = subprocess.Popen([BINARY, "sim", "sidecar", "--socket", self.path], stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertIn("answering on", process.stderr.readline())
        return process

    def get(self, count):
        """The median time of so many requests, which all must be answered."""
        seconds = []
        for _ in range(count):
            self.state = (self.state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            began = time.monotonic()
            status, _ = self.connection.get(f"/{int(self.OBJECTS * ((self.state >> 11) / (1 << 53)) ** 2)}")
            seconds.append(time.monotonic() - began)
            self.assertEqual(status, 200)
        self.assertLess(sorted(seconds)[count * 99 // 100], 1)
        return sorted(seconds)[count // 2]

    def wait_until_asked(self):
        """Pauses between attempts are at most 10 s."""
        before = self.server.metrics()["sidecar_answers_total"]
        for _ in range(60):
            self.get(50)
            if self.server.metrics()["sidecar_answers_total"] > before:
                return
            time.sleep(0.25)
        self.fail("the sidecar is not asked any more")

    def with_trouble(self, *causes):
        """Objects go, all of them chosen by age, and the counters say why."""
        self.get(20)  # what was on its way
        before = self.server.settle()
        median = self.get(400)
        after = self.server.settle()
        self.assertLessEqual(after["cache_bytes"], self.LIMIT)
        self.assertGreater(after["victims_total"] - before["victims_total"], 50)
        self.assertEqual(after["sidecar_answers_total"], before["sidecar_answers_total"])
        # An answer that is none ends the connection, and nobody is asked for a while.
        grown = sum(after["fallbacks_total", f"sidecar_{cause}"] - before["fallbacks_total", f"sidecar_{cause}"]
                    for cause in ("late", "wrong", "absent", "rests"))
        self.assertGreater(grown, 50)
        for cause in causes:
            self.assertGreater(after["fallbacks_total", f"sidecar_{cause}"], 0, cause)
        self.assertLess(median, 3 * self.usual + 0.01)

    def test_stopped_slow_lying_and_dead_ones(self):
        origin = self.start(Origin)
        for i in range(self.OBJECTS):
            origin.add(i, (1 + i * 7919 % 24) * BLOCK - HEADER)
        self.path, self.state = self.folder + "/evict.sock", 1
        process = self.sidecar()
        self.server = self.start(Cache, origin, f"pith_evict zone=web policy=coldrl sidecar={self.path} deadline=20000;",
                                 self.LIMIT)
        self.connection = Connection(self.server.port)
        self.get(400)
        self.usual = self.get(400)
        healthy = self.server.settle()
        self.assertGreater(healthy["sidecar_answers_total"], 50)
        self.assertLessEqual(healthy["cache_bytes"], self.LIMIT)

        process.send_signal(signal.SIGSTOP)
        self.with_trouble("late")
        process.send_signal(signal.SIGCONT)
        self.wait_until_asked()

        # The server's own time limit from here on.
        self.server.write(self.server.http(f"pith_evict zone=web policy=coldrl sidecar={self.path};"))
        self.server.reload()
        time.sleep(1)
        self.connection.close()  # of a worker that has ended
        process.terminate()
        self.assertEqual(process.wait(), 0)
        self.assertFalse(os.path.exists(self.path))
        self.with_trouble("absent")
        for answer, cause in ((late_answer, "late"), (lambda _: os.urandom(76), "wrong"), (no_such_candidate, "wrong"),
                              (lambda _: b"x" * 4096, "wrong")):
            liar = Liar(self.path, answer)
            for _ in range(60):
                if liar.asked:
                    break
                self.get(50)
                time.sleep(0.25)
            self.with_trouble(cause)
            self.assertGreater(liar.asked, 0)
            liar.stop()

        process = self.sidecar()
        self.wait_until_asked()
        process.kill()
        process.wait()
        self.with_trouble("absent")
        self.sidecar()  # in the place of the socket that was left behind
        self.wait_until_asked()
        self.connection.close()
        metrics = self.assert_consistent(self.server)
        for cause in ("timeout", "breaker", "error", "drift"):
            self.assertEqual(metrics["fallbacks_total", cause], 0, cause)
        self.assertEqual([line for line in self.server.complaints() if "pith" in line], [])


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--replay":
        with open(sys.argv[2]) as file:
            names = file.readline().strip().split(",")
            rows = [line.strip().split(",") for line in file]
        sizes, requests = {}, []
        for row in rows:
            name = row[names.index("id")]
            sizes.setdefault(name, -(-(int(row[names.index("size")]) + HEADER) // BLOCK))
            requests.append((name, sizes[name]))
        for policy in sys.argv[4:]:
            with tempfile.TemporaryDirectory() as folder:
                os.chmod(folder, 0o755)
                ours, told, metrics = replay(folder, requests, int(sys.argv[3]), policy)
            # Each miss stores a file.
            stored = round(len(requests) * (1 - ours / 100))
            deleted = stored - metrics["files"][1]
            print(f"{policy:12} nginx {ours:6.2f}  sim {told:6.2f}  manager {metrics['manager']:.2f} s, workers "
                  f"{metrics['workers']:.2f} s of processor, {len(requests) / metrics['seconds']:.0f} requests/s, "
                  f"{deleted} files deleted, {1e6 * metrics['manager'] / max(1, deleted):.0f} us of the manager each", end="")
            if policy != "stock":
                print(f", deleting {metrics['removal_seconds_sum']:.2f} s by the clock"
                      f", {metrics['decisions_total']:.0f} decisions in {metrics['decision_seconds_sum']:.3f} s, p95 <= {1e6 * quantile(metrics, 'decision', 0.95):.0f} us, "
                      f"lock p99 <= {1e6 * quantile(metrics, 'lock', 0.99):.0f} us", end="")
            print(flush=True)
        return
    unittest.main()


if __name__ == "__main__":
    main()
