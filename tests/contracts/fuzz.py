"""Schemathesis tries both contracts: whether the service does what they say, and survives what they do not."""

import os
import pathlib
import subprocess
import sys

import tollgate

HERE = pathlib.Path(__file__).resolve().parent
LIMIT_SECONDS = 300

# What is run on each database: the contract, the seed, and the cases of each operation. Several seeds go further than
# one with more cases, of which the tool soon repeats itself. The seeds stay, so that every run sends the same but for
# what the service itself makes up: a test that fails now and then is believed by nobody.
RUNS = {
    "sqlite": [("hooks", 1, 100), ("management", 1, 25), ("management", 2, 25), ("management", 3, 25)],
    "postgres": [("hooks", 4, 25), ("management", 4, 25)],
}


def run(database, folder):
    """Tries them, each on a service of its own: who guesses credentials as often as several runs do is told to wait."""
    # CONTRACT_SEED looks for what other seeds find.
    other = int(os.environ.get("CONTRACT_SEED", "0"))
    failed = []
    for contract, seed, cases in RUNS[database]:
        seed += other
        print(f"--- Schemathesis on the contract of {contract}, {database}, seed {seed}", flush=True)
        with tollgate.run(database) as service:
            status = schemathesis(service, contract, seed, cases, folder)
        if status != 0:
            failed.append(f"{contract} with seed {seed} (exit code {status})")
    assert not failed, f"Schemathesis: {', '.join(failed)}"


def schemathesis(service, contract, seed, cases, folder):
    """Its exit code."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml", "--no-color"),
        *("run", tollgate.ROOT / "openapi" / f"{contract}.yaml", "--url", service.url),
        *("--checks", "all", "--continue-on-failure"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(cases)),
        *("--seed", str(seed), "--generation-database", "none"),
    ]
    environment = dict(os.environ)
    environment.update(
        TOLLGATE_HOOK_USERNAME=service.username,
        TOLLGATE_HOOK_PASSWORD=service.password,
        TOLLGATE_ADMIN_TOKEN=service.token,
        CONTRACT_CHECKS=str(HERE / "checks.py"),
        CONTRACT_DELETED=" ".join(furnish(service)),
        PYTHONDONTWRITEBYTECODE="1",
        NO_PROXY="127.0.0.1",
    )
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    try:
        return process.wait(LIMIT_SECONDS)
    finally:
        process.kill()
        process.wait()


def furnish(service):
    """What has to be there for requests to succeed; gives the ids of subscriptions that were deleted."""
    for scope in ["email", "reports", "unused-1", "unused-2", "unused-3"]:
        service.call("POST", "/v1/scopes", {"name": scope}).expect(201)
    new = {"subject": {"type": "user", "id": "jane"}, "scopes": ["email", "reports"], "validUntil": None}
    deleted = [service.call("POST", "/v1/subscriptions", new).expect(201)["id"] for _ in range(20)]
    for subscription in deleted:
        service.call("DELETE", f"/v1/subscriptions/{subscription}").expect(204)
    return deleted
