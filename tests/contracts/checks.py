"""What Schemathesis is told beyond schemathesis.toml: two checks of our own, and what it needs to know to get far.

It is told there that an operation may refuse what the contract allows. Here stands why it may: for nothing else, so
that a refusal which nobody meant is a failure all the same.
"""

import json
import os
import re
import zlib

import schemathesis

# What a schema cannot say, by status: where, and what the problem document says about it.
REFUSALS = {
    400: {
        # Its text is the service's own: one that somebody makes up leads nowhere.
        ("?cursor", "expected the `nextCursor` of a page of this very list"),
        # OpenAPI has no parameters that go together.
        ("?subjectType", "it goes with `subjectId`"),
        ("?subjectId", "it goes with `subjectType`"),
    },
    422: {
        # One member is compared with another, with what is stored, or with the present.
        ("#/validUntil", "a window ends after it starts"),
        ("#/graceUntil", "a grace ends after the window, which has to have an end"),
        ("#/at", "a subscription is not canceled in the past"),
        ("#/from", "a subscription is not paused in the past"),
        ("#/until", "a pause ends after it starts"),
        ("#/expiresAt", "a token ends in the future"),
        ("#/duration", "the new end lies beyond the year 9999"),
        ("#/name", "a scope's name never changes"),
        ("#/name", "the name is reserved"),
        ("#/subject", "a subscription stays with its subject"),
        # A schema counts characters, and not bytes.
        ("#/subject/id", "a subject id has 1 to 1024 bytes and no U+0000"),
        # A contract cannot list what is in a catalogue.
        ("#/scopes", "`*` is not in the catalogue"),
        # Lists that fit are filled with words from schemathesis.toml, which are then repeated.
        ("#/scopes", "a subscription names each scope once"),
    },
}


def operation_id(ctx):
    return ctx.operation.definition.raw["operationId"]


@schemathesis.hook
def map_query(ctx, query):
    """Most lists are asked for without a cursor that nobody gave out, and of a whole subject or of none: what is always
    refused reaches nothing. The others are tried, too, as this is not asked in the phase `coverage`."""
    if query and operation_id(ctx).startswith("list-"):
        query.pop("cursor", None)
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


def reasons(problem):
    """What a problem document says is wrong, without the name of a scope."""
    return {(error["pointer"], re.sub("^`.*`", "`*`", error["detail"])) for error in problem.get("errors", [])}


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
