"""What Schemathesis is told beyond schemathesis.toml: checks of our own, and what it needs to know to get far.

It is told there that an operation may refuse what the contract allows. Here stands why it may: for nothing else, so
that a refusal which nobody meant is a failure all the same.
"""

import csv
import hashlib
import io
import ipaddress
import itertools
import json
import os
import re
import zlib

import schemathesis
from hypothesis import strategies as st

# What a schema cannot say, by status: where, and what the problem document says about it.
REFUSALS = {
    400: {
        # Its text is the service's own: one that somebody makes up leads nowhere.
        ("?cursor", "expected the `nextCursor` of a page of this very list"),
        ("?since", "expected `next` of an earlier answer"),
        # OpenAPI has no parameters that go together.
        ("?subjectType", "it goes with `subjectId`"),
        ("?subjectId", "it goes with `subjectType`"),
        # A schema counts characters, and not bytes.
        ("?externalId", "an external id has 1 to 255 bytes and no U+0000"),
        ("?subjectId", "a subject id has 1 to 1024 bytes and no U+0000"),
    },
    422: {
        # One member is compared with another, with what is stored, or with the present.
        ("#/validUntil", "a window ends after it starts"),
        ("#/graceUntil", "a grace ends after the window, which has to have an end"),
        ("#/at", "a subscription is not canceled in the past"),
        ("#/from", "a subscription is not paused in the past"),
        ("#/until", "a pause ends after it starts"),
        ("#/pausedUntil", "a pause ends after it starts"),
        ("#/expiresAt", "a token ends in the future"),
        ("#/duration", "the new end lies beyond the year 9999"),
        ("#/name", "a scope's name never changes"),
        ("#/name", "the name is reserved"),
        ("#/subject", "a subscription stays with its subject"),
        ("#/sourceVersion", "what was written last from that source has a version, so this needs one"),
        # A schema counts characters, and not bytes.
        ("#/subject/id", "a subject id has 1 to 1024 bytes and no U+0000"),
        ("#/externalId", "an external id has 1 to 255 bytes and no U+0000"),
        ("#/claims", "there are at most 16 claims, of 1024 bytes of JSON altogether"),
        # Names have a prefix that the operator chooses, and OpenAPI 3.0 says nothing of names.
        ("#/claims/*", "a claim's name begins with the prefix of TOLLGATE_CLAIMS_PREFIX, and goes on after it"),
        # Any JSON value but one, at any depth.
        ("#/claims/*", "a claim holds no null, however deep"),
        # A contract cannot list what is in a catalogue.
        ("#/scopes", "`*` is not in the catalogue"),
        # Lists that fit are filled with words from schemathesis.toml, which are then repeated.
        ("#/scopes", "a subscription names each scope once"),
    },
}


def operation_id(ctx):
    """Of a case, too."""
    return ctx.operation.definition.raw["operationId"]


@schemathesis.hook
def map_query(ctx, query):
    """Most lists are asked for without a cursor that nobody gave out, and of a whole subject or of none: what is always
    refused reaches nothing. The others are tried, too, as this is not asked in the phase `coverage`."""
    if query and (operation_id(ctx).startswith("list-") or operation_id(ctx) == "get-history"):
        query.pop("cursor", None)
        query.pop("since", None)
        if ("subjectType" in query) != ("subjectId" in query):
            query.pop("subjectType", None)
            query.pop("subjectId", None)
    return query


# By operation: what it can be done to, as its path names it.
IDS = json.loads(os.environ["CONTRACT_IDS"])


@schemathesis.hook
def map_path_parameters(ctx, parameters):
    """Only what was deleted can be restored, and the like: every other time it is that. The same parameters become the
    same, or the tool cannot repeat what it did, and gives up."""
    ids = IDS.get(operation_id(ctx))
    if parameters and ids:
        ((name, value),) = parameters.items()
        chosen = zlib.crc32(str(value).encode()) % (2 * len(ids))
        if chosen < len(ids):
            parameters[name] = ids[chosen]
    return parameters


# What a write of a batch can be; those first that make something.
NEW = ["create", "put"]
VERBS = [*NEW, "patch", "cancel", "uncancel", "pause", "resume", "renew", "delete", "restore"]
# Tells the keys of idempotency apart.
KEYS = itertools.count()
CLAIMS_PREFIX = os.environ["CONTRACT_CLAIMS_PREFIX"]


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Makes of what fits the schemas something that is not refused for what they do not say.

    - Of the ten members of a batch's write exactly one is there. A schema could say so, but the tool finds next to nothing
      that fits it. In a batch that is not atomic every other write is left as it is: it has a status of its own.
    - Most claims have names with the prefix of the service under test.
    - No key comes twice: what was made with it may be gone by then, and its answer would still say that it is there.

    All come from places of their own, as the credentials are taken from some: who guesses too often is told to wait.
    """
    case.headers["X-Forwarded-For"] = source(repr([case.operation.label, case.path_parameters, case.query, case.body]))
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict):
        body = case.body
        if operation_id(ctx) == "write-subscriptions":
            is_left = lambda number: number % 2 == 1 and not body.get("atomic")
            items = enumerate(body["items"])
            body = body | {"items": [item if is_left(number) else write(number, item) for number, item in items]}
        body = with_claims(body)
        if body != case.body:
            case.body = body
    if key := case.headers.get("Idempotency-Key"):
        case.headers["Idempotency-Key"] = hashlib.sha256(repr([next(KEYS), key]).encode()).hexdigest()


def source(text):
    """An address that a text stands for."""
    return str(ipaddress.IPv4Address((10 << 24) + zlib.crc32(text.encode(errors="surrogatepass")) % (1 << 24)))


def write(number, item):
    """A write of a batch that is one."""
    verb = next((verb for verb in VERBS if verb in item), "resume")
    body = item.get(verb, {})
    if verb in NEW:
        known = {} if "externalId" in body else {"source": "batch", "externalId": f"item {number}"}
        return {verb: body | (known if verb == "put" else {})}
    ids = IDS["patch-subscription"]
    known = {"id": item.get("id", ids[number % len(ids)])}
    return {member: item[member] for member in ["version"] if member in item} | known | {verb: body}


def with_claims(value):
    """A body whose claims, wherever they are, have names with the prefix, but for some."""
    if isinstance(value, list):
        return [with_claims(item) for item in value]
    if not isinstance(value, dict):
        return value
    members = {name: with_claims(member) for name, member in value.items()}
    if isinstance(claims := members.get("claims"), dict):
        members["claims"] = {claim(name): value for name, value in claims.items()}
    return members


def claim(name):
    digest = zlib.crc32(name.encode(errors="surrogatepass"))
    return f"{CLAIMS_PREFIX}{digest}" if digest % 8 else name


# Files. One of any bytes is read line by line, and the lines that are wrong are told: most are right here.
COLUMNS = ["source", "externalId", "sourceVersion", "subjectType", "subjectId", "scopes", "validFrom", "validUntil"]


@st.composite
def lines(draw):
    """Lines of a file: dictionaries by column, and bytes that are none."""
    line = st.fixed_dictionaries({
        "source": st.sampled_from(["billing", "files", "no source"]),
        "externalId": st.sampled_from(["sub_1", "sub_2"]) | st.text(max_size=5),
        "sourceVersion": st.integers(-1, 5),
        "subjectType": st.sampled_from(["user", "client", "user", "nobody"]),
        "subjectId": st.text(max_size=5),
        "scopes": st.sampled_from([["email"], ["email", "reports"], ["email", "email"], ["nothing"], []]),
        "validFrom": st.sampled_from(["2026-01-31T12:00:00Z", "0001-01-01T00:00:00Z"]),
        "validUntil": st.sampled_from(["2098-01-31T12:00:00Z", "2098-01-31T12:00:00+02:00", None, "tomorrow"]),
    })
    return draw(st.lists(line | line | line | st.binary(max_size=10), max_size=5))


def ndjson(found):
    def text(line):
        subject = {"type": line["subjectType"], "id": line["subjectId"]}
        members = {name: line[name] for name in COLUMNS if not name.startswith("subject")}
        return json.dumps(members | {"subject": subject}).encode()

    return b"\n".join(line if isinstance(line, bytes) else text(line) for line in found)


def comma_separated(found):
    def text(values):
        record = io.StringIO()
        csv.writer(record).writerow(values)
        # The tool makes texts of which some are not Unicode.
        return record.getvalue().encode(errors="replace")

    def value(line, name):
        if name == "scopes":
            return " ".join(line[name])
        # An end that never comes has a word: an empty value may be one that was lost.
        return "never" if name == "validUntil" and line[name] is None else line[name]

    def row(line):
        return text(value(line, name) for name in COLUMNS)

    return text(COLUMNS) + b"".join(line + b"\r\n" if isinstance(line, bytes) else row(line) for line in found)


schemathesis.openapi.media_type("application/x-ndjson", lines().map(ndjson))
schemathesis.openapi.media_type("text/csv", lines().map(comma_separated))


@schemathesis.deserializer("application/x-ndjson", "text/csv")
def file_of_subscriptions(ctx, response):
    """What the schema says of a file: that it is one. The check below reads it."""
    return response.content.decode()


@schemathesis.check
def a_file_is_what_was_asked_for(ctx, response, case):
    """An export has the type that was asked for, and can be read to its end."""
    if operation_id(case) != "export-subscriptions" or response.status_code != 200:
        return
    text = response.content.decode()
    if response.headers["content-type"][0] == "text/csv":
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert (case.query or {}).get("format") == "csv" and rows and rows[0][: len(COLUMNS)] == COLUMNS
        assert all(len(row) == len(rows[0]) for row in rows), "a row with another number of values than the first"
    else:
        assert response.headers["content-type"] == ["application/x-ndjson"]
        assert all("status" in json.loads(line) for line in text.split("\n")[:-1])


@schemathesis.check
def a_write_of_a_batch_is_refused_for_what_does_not_fit(ctx, response, case):
    """What does not fit the schemas is not done: where a batch goes on without it, its write has a 400."""
    if operation_id(case) != "write-subscriptions" or response.status_code != 207:
        return
    if case.meta is not None and case.meta.generation.mode.is_negative:
        items = response.json()["items"]
        assert any(item["status"] == 400 for item in items), "nothing was refused of what does not fit the schemas"


@schemathesis.check
def an_import_tells_what_became_of_each_line(ctx, response, case):
    """No line is lost: each was imported, or is told."""
    if operation_id(case) != "import-subscriptions" or response.status_code != 200:
        return
    report = response.json()
    outcomes = ["created", "changed", "unchanged", "outdated", "refused"]
    assert report["complete"] and report["lines"] == sum(report[outcome] for outcome in outcomes), report
    assert report["refused"] == len(report["problems"]), report


def reasons(problem):
    """What a problem document says is wrong, without the place in a batch, and the names of a scope and of a claim."""
    place = lambda pointer: re.sub("^#/claims/.*", "#/claims/*", re.sub(r"^#/items/\d+/\w+/", "#/", pointer))
    return {(place(error["pointer"]), re.sub("^`.*`", "`*`", error["detail"])) for error in problem.get("errors", [])}


@schemathesis.check
def refused_for_a_reason_that_the_contract_cannot_say(ctx, response, case):
    """What fits the schemas is refused for one of the reasons above only."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in REFUSALS:
        return
    problem = response.json()
    found = reasons(problem)
    unknown = found - REFUSALS[response.status_code]
    assert found and not unknown, f"refused without a known reason: {unknown or problem['code']}"


@schemathesis.check
class EveryOperationSucceeds:
    """A run in which an operation was only ever refused has tried nothing of it."""

    def __init__(self):
        self.asked = set()
        self.answered = set()

    def after_response(self, ctx, response, case):
        self.asked.add(case.operation.label)
        if response.status_code in range(200, 300):
            self.answered.add(case.operation.label)

    def after_run(self, ctx):
        refused = sorted(self.asked - self.answered)
        assert not refused, f"never answered with success: {', '.join(refused)}"
