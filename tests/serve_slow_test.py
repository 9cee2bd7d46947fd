#!/usr/bin/env python3
"""The page in headless Chromium, and servers that are restarted one after the other behind NGINX: serve_slow_test.py CLASS...

PITH_BINARY names the program. Needs the default model; Page needs Debian's chromium and chromium-driver, RollingRestart its
nginx, and each is skipped without them. PITH_SCREENSHOTS names a folder for pictures of the page.
"""

import base64
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from serve_test import BINARY, Server, default_model  # noqa: E402

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(what, seconds=30):
    end = time.time() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.time() > end:
            raise AssertionError(f"{what} did not come about within {seconds} s")
        time.sleep(0.1)


class Network:
    """Machines: processes in network namespaces of their own, each with a cable to the caller's, which is a new one, too."""

    NEW_NET = 0x40000000  # CLONE_NEWNET

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.before = os.open("/proc/self/ns/net", os.O_RDONLY)
        if self.libc.unshare(self.NEW_NET) != 0:
            os.close(self.before)
            raise OSError(ctypes.get_errno(), "no namespaces")
        try:
            self.ip("link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.leave()
            raise OSError(f"no devices: {error}")

    @staticmethod
    def ip(*words, of=None):
        inside = ["nsenter", "-t", str(of), "-n"] if of else []
        subprocess.run([*inside, "ip", *words], check=True, capture_output=True)

    def start(self, number, command, **options):
        """The process, at 10.0.NUMBER.2. It waits for its cable before it becomes the command."""
        process = subprocess.Popen(["unshare", "-n", "sh", "-c", 'read _; exec "$0" "$@"', *command], stdin=subprocess.PIPE, **options)
        wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        cable = f"pith{number}"
        # That of who was here before goes with its namespace.
        wait_for(lambda: cable not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout)
        self.ip("link", "add", cable, "type", "veth", "peer", "name", "wire", "netns", str(process.pid))
        self.ip("addr", "add", f"10.0.{number}.1/24", "dev", cable)
        self.ip("link", "set", cable, "up")
        for words in (("link", "set", "lo", "up"), ("addr", "add", f"10.0.{number}.2/24", "dev", "wire"), ("link", "set", "wire", "up")):
            self.ip(*words, of=process.pid)
        process.stdin.write("\n")
        process.stdin.close()
        return process

    def leave(self):
        self.libc.setns(self.before, self.NEW_NET)
        os.close(self.before)


class Browser:
    """WebDriver's protocol, as much of it as is needed here."""

    def __init__(self):
        self.port = free_port()
        self.process = subprocess.Popen(["chromedriver", f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]}
        wait_for(self.is_up)
        value = self.call("POST", "", {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options,
                                                                        "goog:loggingPrefs": {"browser": "ALL"}}}}, bare=True)
        self.session = value["sessionId"]

    def is_up(self):
        try:
            return json.loads(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5).read())["value"]["ready"]
        except OSError:
            return False

    def call(self, method, path, body=None, bare=False):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        where = "/session" + ("" if bare else f"/{self.session}/{path}").rstrip("/")
        connection.request(method, where, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        value = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{path}: {value['message'][:300]}")
        return value

    def run(self, script):
        return self.call("POST", "execute/sync", {"script": script, "args": []})

    def keys(self, text):
        actions = [action for key in text for action in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})]
        self.call("POST", "actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def size(self, width, height):
        self.call("POST", "window/rect", {"width": width, "height": height})

    def dark(self, on):
        self.call("POST", "goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]}})

    def screenshot(self, name):
        folder = os.environ.get("PITH_SCREENSHOTS")
        picture = base64.b64decode(self.call("GET", "screenshot"))
        if folder:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(picture)
        return picture

    def stop(self):
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait(20)


ENTER, RIGHT, DOWN, TAB = "\ue007", "\ue014", "\ue015", "\ue004"


@unittest.skipUnless(os.path.exists(default_model()), "no default model")
@unittest.skipUnless(shutil.which("chromedriver") and shutil.which("chromium"), "no chromium and chromium-driver")
class Page(unittest.TestCase):
    def test_a_talk(self):
        server = Server("-np", "2", "--kv-budget", "40MiB")
        browser = Browser()
        try:
            start = time.time()
            browser.call("POST", "url", {"url": server.url + "/"})
            self.assertLess(time.time() - start, 5)
            loaded = browser.run("const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime")
            self.assertLess(loaded, 1000)
            others = browser.run("return performance.getEntriesByType('resource').map(r => r.name)")
            self.assertTrue(all(name.startswith(server.url) for name in others), others)
            # By keyboard alone: the message has the focus.
            browser.run("at('most').value = 24")
            browser.keys("Tell me about rivers.")
            browser.keys(ENTER)
            wait_for(lambda: browser.run("return !running && messages.length === 2"), 60)
            wait_for(lambda: browser.run("return at('map').children.length > 20 && at('layers').children.length === 31"))
            browser.run("at('map').focus()")
            browser.keys(RIGHT + RIGHT + DOWN)
            self.assertIn("position 11", browser.run("return at('about').textContent"))
            # Who stays at a token learns its format and score, head by head.
            wait_for(lambda: browser.run("return !at('heads').hidden && at('heads').children.length === 90"))
            self.assertRegex(browser.run("return at('heads').children[4].title"), r"layer 1, head 1: (gone|f16|q\d)")
            self.assertRegex(browser.run("return at('about').textContent"), r"in \d+ heads")
            browser.run("at('layers').children[0].focus()")
            browser.keys(DOWN)
            self.assertEqual(browser.run("return at('layers').querySelector('[aria-checked=true]').innerText.split(/\\s/)[0]"), "0")
            browser.screenshot("page.png")
            # Another budget shows at once what it keeps.
            browser.run("at('text').value = 'river and town '.repeat(500); at('form').requestSubmit()")
            wait_for(lambda: browser.run("return !running && messages.length === 4"), 60)
            browser.run("at('budget').value = '2MiB'; at('budget').dispatchEvent(new Event('change'))")
            wait_for(lambda: browser.run("return at('limit').textContent === '2.0 MiB' && parseFloat(at('kept').textContent) < 80"), 60)
            self.assertGreater(browser.run("return at('map').querySelectorAll('.lost').length"), 20)
            token = browser.run("return [...at('map').children].findIndex((one, i) => i > 40 && shown.kv.map[i] > 0 && shown.kv.map[i] < 100)")
            browser.run(f"tell({token})")
            wait_for(lambda: browser.run("return !at('heads').hidden"))
            titles = browser.run("return [...at('heads').children].map(one => one.title)")
            self.assertTrue(any("gone" in title for title in titles), titles[:5])
            self.assertTrue(any("score" in title and "above" in title for title in titles), titles[:5])
            browser.screenshot("page_budget.png")
            browser.run("at('full').click()")
            wait_for(lambda: browser.run("return document.querySelectorAll('.pair .said').length === 2 && "
                                         "document.querySelector('.pair').textContent.includes('with the full cache')"), 60)
            # What was stopped stays as far as it came; what failed is in nobody's way, and its text comes back.
            browser.run("at('most').value = 300; at('budget').value = ''; at('text').value = 'Tell me a long story.'; at('form').requestSubmit()")
            wait_for(lambda: browser.run("return !!running && at('talk').lastChild.textContent.length > 30"), 60)
            browser.keys("\ue00c")  # Escape
            wait_for(lambda: browser.run("return !running"))
            told = browser.run("return [messages.length, messages.at(-1).role, messages.at(-1).content]")
            self.assertEqual(told[:2], [6, "assistant"])
            self.assertGreater(len(told[2]), 20)
            browser.run("at('recipe').value = 'none such'; at('text').value = 'And then?'; at('form').requestSubmit()")
            wait_for(lambda: browser.run("return !running && at('talk').lastChild.textContent.includes('recipe')"))
            self.assertEqual(browser.run("return [messages.length, at('text').value]"), [6, "And then?"])
            # A new talk while an answer is written begins with nothing.
            browser.run("at('recipe').value = ''; at('form').requestSubmit()")
            wait_for(lambda: browser.run("return !!running && messages.length === 7"))
            browser.run("at('anew').click()")
            wait_for(lambda: browser.run("return !running"))
            self.assertEqual(browser.run("return [messages.length, at('talk').children.length, at('full').disabled]"), [0, 0, True])
            browser.run("at('most').value = 8; at('text').value = 'Hello'; at('form').requestSubmit()")
            wait_for(lambda: browser.run("return !running && messages.length === 2"), 60)
            browser.dark(True)
            browser.size(420, 860)
            self.assertLessEqual(browser.run("return document.documentElement.scrollWidth"), browser.run("return innerWidth"))
            browser.screenshot("page_phone_dark.png")
            log = [entry for entry in browser.call("POST", "se/log", {"type": "browser"}) if entry["level"] in ("SEVERE", "WARNING")]
            refused = [entry for entry in log if "400 (Bad Request)" in entry["message"]]
            self.assertEqual((len(refused), log), (1, refused), "the recipe that there is none of")
        finally:
            browser.stop()
            self.assertEqual(server.stop(), 0)


@unittest.skipUnless(os.path.exists(default_model()), "no default model")
@unittest.skipUnless(shutil.which("nginx"), "no nginx")
class RollingRestart(unittest.TestCase):
    """deploy/nginx.conf with three servers, each on a machine of its own where namespaces may be made (else on a port): each is
    restarted under load, and no request fails."""

    def setUp(self):
        try:
            self.network = Network()
            self.addCleanup(self.network.leave)
        except OSError as error:
            self.network = None
            print(f"servers on ports: {error}", file=sys.stderr)
        self.port = free_port()
        self.addresses = [f"10.0.{i}.2:8081" if self.network else f"127.0.0.1:{free_port()}" for i in range(1, 4)]
        self.servers = [self.start(i) for i in range(3)]
        self.folder = tempfile.TemporaryDirectory()
        with open(SOURCE + "/deploy/nginx.conf") as file:
            text = file.read()
        for old, new in zip(("8080", "8081", "8082", "8083"), (f"127.0.0.1:{self.port}", *self.addresses)):
            text = text.replace(f"127.0.0.1:{old}", new)
        with open(self.folder.name + "/nginx.conf", "w") as file:
            file.write(text.replace("worker_processes 1;", f"worker_processes 1;\npid {self.folder.name}/pid;\ndaemon off;"))
        self.nginx = subprocess.Popen(["nginx", "-p", self.folder.name, "-c", self.folder.name + "/nginx.conf"], stderr=subprocess.DEVNULL)
        wait_for(lambda: self.ask("x", 1)[0] == 200)

    def tearDown(self):
        self.nginx.terminate()
        self.nginx.wait(20)
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        self.folder.cleanup()

    def start(self, i):
        host, port = self.addresses[i].split(":")
        command = [BINARY, "serve", "--host", host, "--port", port, "-np", "2", "-c", "1024", "-t", "1", "--temp", "0"]
        options = {"stdout": subprocess.PIPE, "text": True}
        process = self.network.start(i + 1, command, **options) if self.network else subprocess.Popen(command, **options)
        self.assertIn("http://", process.stdout.readline())
        process.stdout.close()
        return process

    def ask(self, key, tokens):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body = {"messages": [{"role": "user", "content": f"Count for {key}. " * 12}], "max_tokens": tokens, "stream": True}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"X-Prompt-Cache-Key": key})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        finally:
            connection.close()

    def test_no_request_is_lost(self):
        outcomes, stop = [], threading.Event()

        def client(number):
            while not stop.is_set():
                outcomes.append(self.ask(f"client {number}", 12))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            for i in range(3):
                time.sleep(1.5)
                self.servers[i].send_signal(signal.SIGTERM)
                self.assertEqual(self.servers[i].wait(60), 0)
                self.servers[i] = self.start(i)
            time.sleep(2.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        bad = [(status, text[:200]) for status, text in outcomes if status != 200 or "data: [DONE]" not in text]
        self.assertEqual(bad, [])
        self.assertGreater(len(outcomes), 20)
        # Affinity: a conversation's second turn finds what its first one left.
        self.ask("one conversation", 2)
        again = self.ask("one conversation", 2)[1]
        self.assertGreater(json.loads(again.split("data: ")[-2])["timings"]["cache_n"], 40)


if __name__ == "__main__":
    unittest.main(verbosity=2)
