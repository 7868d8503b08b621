"""A running Tollgate to try the contracts on, and how to ask it without a client."""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 60
STOP_SECONDS = 20
ANSWER_SECONDS = 30
# What the names of all claims begin with.
CLAIMS_PREFIX = "https://tollgate.example/"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was answered to a request."""

    status: int
    headers: dict
    body: object

    def expect(self, status):
        """The body, if the status is the one expected."""
        assert self.status == status, f"expected {status}, got {self.status}: {self.body}"
        return self.body


@dataclasses.dataclass(frozen=True)
class Tollgate:
    """A service that runs, and its credentials."""

    url: str
    username: str
    password: str
    token: str

    def call(self, method, path, body=None):
        """Asks the management API."""
        return self._ask(method, path, body, f"Bearer {self.token}")

    def hook(self, path, body):
        """Asks a hook, as Access does."""
        pair = f"{self.username}:{self.password}".encode()
        return self._ask("POST", path, body, f"Basic {base64.b64encode(pair).decode()}")

    def _ask(self, method, path, body, authorization):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with _direct.open(request, timeout=ANSWER_SECONDS) as response:
                return _read(response)
        except urllib.error.HTTPError as refused:
            with refused:
                return _read(refused)


# A proxy of the caller's does not reach the loopback interface.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _read(response):
    text = response.read()
    return Answer(response.status, dict(response.headers), json.loads(text) if text else None)


@contextlib.contextmanager
def run(database):
    """Runs Tollgate on a new database, `sqlite` or `postgres`, until the block ends, however it does."""
    with tempfile.TemporaryDirectory(prefix="tollgate-contracts.") as folder, _new_database(database, folder) as url:
        main, operations = free_addresses(2)
        tollgate = Tollgate(f"http://{main}", "hook", secrets.token_urlsafe(24), secrets.token_urlsafe(24))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
        environment.update(
            TOLLGATE_DATABASE_URL=url,
            TOLLGATE_LISTEN=main,
            TOLLGATE_OPS_LISTEN=operations,
            TOLLGATE_HOOK_USERNAME=tollgate.username,
            TOLLGATE_HOOK_PASSWORD=tollgate.password,
            TOLLGATE_ADMIN_TOKEN=tollgate.token,
            # Without it every claim is refused.
            TOLLGATE_CLAIMS_PREFIX=CLAIMS_PREFIX,
            # So that a test can come from many places: who guesses too often from one is told to wait.
            TOLLGATE_TRUSTED_PROXIES="127.0.0.1/32",
            # A machine that does much else is slow to answer.
            TOLLGATE_HOOK_TIMEOUT="10s",
            TOLLGATE_DRAIN_DELAY="0s",
            TOLLGATE_LOG="warn",
        )
        log = pathlib.Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen([binary(), "serve"], env=environment, stdin=subprocess.DEVNULL, stderr=output)
        try:
            wait_until_ready(process, f"http://{operations}/readyz", log)
            yield tollgate
            assert process.poll() is None, f"the service ended with {process.returncode}:\n{log.read_text()}"
        finally:
            stop(process)
        assert process.returncode == 0, f"the service ended with {process.returncode}:\n{log.read_text()}"


def binary():
    """The debug build of the service."""
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"]
    target = json.loads(subprocess.check_output(metadata, cwd=ROOT))["target_directory"]
    binary = pathlib.Path(target, "debug", "tollgate")
    assert binary.exists(), f"{binary} is missing: cargo build --locked"
    return binary


@contextlib.contextmanager
def _new_database(kind, folder):
    if kind == "sqlite":
        yield f"sqlite://{folder}/tollgate.db?mode=rwc"
        return
    server, name = os.environ["TEST_DATABASE_URL"], f"contracts_{secrets.token_hex(8)}"
    psql(server, f"CREATE DATABASE {name}")
    try:
        yield with_database(server, name)
    finally:
        psql(server, f"DROP DATABASE {name}")


def with_database(url, name):
    """The URL of another database of the same server."""
    return urllib.parse.urlsplit(url)._replace(path=f"/{name}").geturl()


def psql(url, statement):
    """Runs a statement in a database."""
    program = pathlib.Path(os.environ.get("TEST_POSTGRES_BIN", ""), "psql")
    command = [program, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--command", statement, url]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def free_addresses(count):
    """Addresses that nobody listens at, below those that the system hands out."""
    found, start = [], secrets.randbelow(10_000)
    for offset in range(10_000):
        address = ("127.0.0.1", 10_000 + (start + offset) % 10_000)
        with socket.socket() as listener:
            with contextlib.suppress(OSError):
                listener.bind(address)
                found.append("{}:{}".format(*address))
        if len(found) == count:
            return found
    raise AssertionError("no free port")


def wait_until_ready(process, url, log):
    """Waits until the service says at its operators' address that it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the service ended with {process.returncode}:\n{log.read_text()}"
        with contextlib.suppress(OSError):
            with _direct.open(url, timeout=5):
                return
        time.sleep(0.05)
    raise AssertionError(f"the service is not ready after {START_SECONDS} s:\n{log.read_text()}")


def stop(process):
    """Ends a process, as a supervisor does."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
