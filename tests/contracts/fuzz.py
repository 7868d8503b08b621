"""Schemathesis tries both contracts: whether the service does what they say, and survives what they do not."""

import json
import os
import pathlib
import subprocess
import sys

import tollgate

HERE = pathlib.Path(__file__).resolve().parent
LIMIT_SECONDS = 300
# How many there are of what a request may be about, and when the subscriptions among them end.
FURNISHED = 20
END = "2097-01-31T12:00:00Z"

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
        CONTRACT_CLAIMS_PREFIX=tollgate.CLAIMS_PREFIX,
        CONTRACT_IDS=json.dumps(furnish(service)),
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
    """What has to be there for requests to succeed; gives what the operations can be done to, as their path names it."""
    unused = [f"unused-{number}" for number in range(FURNISHED)]
    for scope in ["email", "reports", *unused]:
        service.call("POST", "/v1/scopes", {"name": scope}).expect(201)

    def subscription(*done):
        """A new one, to which something was done."""
        new = {"subject": {"type": "user", "id": "jane"}, "scopes": ["email", "reports"], "validUntil": END}
        made = service.call("POST", "/v1/subscriptions", new).expect(201)["id"]
        for method, verb, status in done:
            service.call(method, f"/v1/subscriptions/{made}{verb}").expect(status)
        return made

    def known(number):
        """One that another system knows by an id, and says more of."""
        claims = {f"{tollgate.CLAIMS_PREFIX}plan": "basic"}
        state = {"subject": {"type": "user", "id": "joe"}, "scopes": ["email"], "validUntil": END, "claims": claims}
        path = f"/v1/subscriptions/by-external-id?source=billing&externalId=sub_{number}"
        return service.call("PUT", path, state).expect(201)["id"]

    def token(number):
        new = {"name": f"token-{number}", "role": "reader", "expiresAt": None}
        return service.call("POST", "/v1/tokens", new).expect(201)["id"]

    active = [subscription() for _ in range(FURNISHED)]
    tokens = [token(number) for number in range(FURNISHED)]
    for number in range(FURNISHED):
        known(number)
    return {
        "delete-scope": unused,
        "get-subscription": active,
        "get-history": active,
        "patch-subscription": active,
        "delete-subscription": active,
        "cancel-subscription": active,
        "pause-subscription": active,
        "renew-subscription": active,
        "uncancel-subscription": [subscription(("POST", "/cancel", 200)) for _ in range(FURNISHED)],
        "resume-subscription": [subscription(("POST", "/pause", 200)) for _ in range(FURNISHED)],
        "restore-subscription": [subscription(("DELETE", "", 204)) for _ in range(FURNISHED)],
        "get-token": tokens,
        "revoke-token": tokens,
    }
