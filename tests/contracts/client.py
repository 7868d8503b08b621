"""The life of a subscription, with a client that openapi-python-client makes of the contract of the management API.

What the client cannot be made of, or cannot read, is a fault of the contract. Beside each step stands what the hooks
answer then. A new step is a function with `@step`, which runs after those above it; an operation that no step asks for
is a failure.
"""

import datetime
import importlib
import io
import json
import pathlib
import subprocess
import sys
import time
import uuid

import tollgate

PACKAGE = "tollgate_management"
STEPS = []
DAY = datetime.timedelta(days=1)
# The generator knows neither kind of file: both are bytes to it.
CONFIG = {"content_type_overrides": dict.fromkeys(["application/x-ndjson", "text/csv"], "application/octet-stream")}
# How long a change may take to show among all changes: until no older transaction is under way on the server.
SHOWN_SECONDS = 30


def run(database, folder):
    """Makes the client in a folder, and takes all steps."""
    generate(folder)
    with tollgate.run(database) as service:
        story = Story(service)
        for function in STEPS:
            print(f"    {function.__doc__}", flush=True)
            function(story)
    missing = story.operations - story.asked
    assert not missing, f"no step asks for {', '.join(sorted(missing))}"


def generate(folder):
    """Makes the client: without a warning, as a warning says that some of it is missing."""
    generator = pathlib.Path(sys.executable).with_name("openapi-python-client")
    config = pathlib.Path(folder, "generator.json")
    config.write_text(json.dumps(CONFIG))
    command = [generator, "generate", "--path", tollgate.ROOT / "openapi" / "management.yaml", "--config", config]
    command += ["--meta", "none", "--fail-on-warning", "--output-path", PACKAGE]
    subprocess.run(command, cwd=folder, check=True)
    # The client of an earlier run is of another folder.
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]
    sys.path[:] = [str(folder), *(path for path in sys.path if not pathlib.Path(path, PACKAGE).exists())]
    importlib.invalidate_caches()


def step(function):
    """Lists a function as the next step; its text says what holds."""
    STEPS.append(function)
    return function


class Story:
    """What the steps share: the client, and what has become of the subscription."""

    def __init__(self, service):
        self.service = service
        self.client = self.client_with(service.token)
        self.models = importlib.import_module(f"{PACKAGE}.models")
        self.unset = importlib.import_module(f"{PACKAGE}.types").UNSET
        api = pathlib.Path(sys.modules[PACKAGE].__file__).parent / "api"
        self.operations = {path.stem for path in api.glob("*/*.py") if path.stem != "__init__"}
        self.modules = {path.stem: f"{PACKAGE}.api.{path.parent.name}.{path.stem}" for path in api.glob("*/*.py")}
        self.asked = set()
        self.subscription = None

    def client_with(self, token):
        """A client with a credential, which raises when a status is not described."""
        module = importlib.import_module(f"{PACKAGE}.client")
        return module.AuthenticatedClient(
            self.service.url, token=token, raise_on_unexpected_status=True, httpx_args={"trust_env": False}
        )

    def ask(self, operation, *arguments, client=None, **members):
        """Asks an operation, and gives what the client makes of the answer."""
        self.asked.add(operation)
        function = importlib.import_module(self.modules[operation]).sync_detailed
        return function(*arguments, client=client or self.client, **members)

    def call(self, operation, *arguments, **members):
        """Asks for what is granted, and gives it."""
        answer = self.ask(operation, *arguments, **members)
        assert 200 <= answer.status_code < 300, f"{operation}: {answer.status_code} {answer.parsed}"
        if answer.status_code != 204:
            assert answer.parsed is not None, f"{operation}: nothing that the client can read"
        return answer.parsed

    def refuse(self, operation, *arguments, status, code, pointer=None, **members):
        """Asks for what is refused, and reads why in a problem document."""
        answer = self.ask(operation, *arguments, **members)
        problem = answer.parsed
        assert isinstance(problem, self.models.Problem), f"{operation}: {answer.status_code} {problem}"
        assert (answer.status_code, problem.status, problem.code) == (status, status, code), f"{operation}: {problem}"
        assert problem.type_ == f"urn:tollgate:problem:{code}", problem
        pointers = [error.pointer for error in problem.errors or []]
        assert pointers == ([pointer] if pointer else []), f"{operation}: {problem}"

    def act(self, verb, **members):
        """Does something to the subscription."""
        self.subscription = self.call(f"{verb}_subscription", self.subscription.id, **members)
        return self.subscription

    def refuse_to(self, verb, **members):
        """Does what is refused to the subscription."""
        self.refuse(f"{verb}_subscription", self.subscription.id, **members)

    def subscribe(self, user, scopes, valid_from, valid_until, **members):
        """A new subscription of a user."""
        return self.call("create_subscription", body=self.new(user, scopes, valid_from, valid_until, **members))

    def new(self, user, scopes, valid_from, valid_until, **members):
        """What a new subscription of a user is made of."""
        subject = self.models.Subject(type_=self.models.SubjectType.USER, id=user)
        return self.models.NewSubscription(
            subject=subject, scopes=scopes, valid_from=valid_from, valid_until=valid_until, **members
        )

    def state(self, user, scopes, **members):
        """What a system says of a subscription of a user."""
        subject = self.models.Subject(type_=self.models.SubjectType.USER, id=user)
        window = {"valid_from": utc(2026, 1, 1), "valid_until": utc(2098, 1, 31)}
        return self.models.SubscriptionState(subject=subject, scopes=scopes, **window, **members)

    def put(self, external_id, body, **members):
        """Says something of a subscription that `billing` knows by an id."""
        return self.call("put_subscription", source="billing", external_id=external_id, body=body, **members)

    def list(self, user, **members):
        """The subscriptions of a user."""
        kind = self.models.ListSubscriptionsSubjectType.USER
        return self.call("list_subscriptions", subject_type=kind, subject_id=user, **members).items

    def pages(self, operation, *arguments, **members):
        """All items of a list, page by page."""
        cursor, found = self.unset, []
        while True:
            page = self.call(operation, *arguments, cursor=cursor, **members)
            found.append(page.items)
            cursor = page.next_cursor
            if cursor is self.unset:
                return found

    def import_file(self, media_type, text, **members):
        """What becomes of a file. The client has one function for both kinds, and sends the last one that is described:
        what is sent is said here."""
        payload = importlib.import_module(f"{PACKAGE}.types").File(payload=io.BytesIO(text.encode()))
        client = self.client_with(self.service.token)
        hook = lambda request: request.headers.update({"Content-Type": media_type})
        client.get_httpx_client().event_hooks = {"request": [hook]}
        return self.call("import_subscriptions", body=payload, client=client, **members)

    def export_file(self, format_, media_type, **members):
        """The text of a file."""
        format_ = self.models.ExportSubscriptionsFormat(format_)
        answer = self.ask("export_subscriptions", format_=format_, **members)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, media_type), answer
        return answer.content.decode()

    def request(self, user, scopes):
        """A request of the hooks, and how the client says it."""
        request = {"user": {"id": user}, "client": {"id": "app"}, "scopes": scopes}
        return request, self.models.HookRequest.from_dict(request)

    def holds(self, user, *scopes):
        """Holds what both hooks answer about a user, and what is explained, to the scopes that are left, of those that
        are asked for."""
        asked = ["openid", "weather", "reports"]
        request, hook_request = self.request(user, asked)
        left = ["openid", *(scope for scope in asked if scope in scopes)]
        removed = [scope for scope in asked if scope not in left]
        answer = self.service.hook("/v1/customize-access-token", request).expect(200)
        assert answer["removeScopes"] == removed, f"{user}: {answer}, but {left} are left"
        explained = self.call("explain", body=self.models.ExplanationRequest(request=hook_request))
        told = {"removeScopes": explained.remove_scopes, "additionalClaims": explained.additional_claims.to_dict()}
        assert answer == told, f"{user}: {answer}, but it is explained as {told}"
        kept = {scope.scope: scope.kept for scope in explained.scopes}
        assert kept == {scope: scope in left for scope in asked}, f"{user}: {explained}, but {left} are left"
        answer = self.service.hook("/v1/customize-token", request).expect(200)
        assert answer == {"reducedScopes": left}, f"{user}: {answer}, but {left} are left"

    def entitlement(self, user, scope):
        """How a user stands to a scope."""
        kind = self.models.GetEntitlementsSubjectType.USER
        found = self.call("get_entitlements", subject_type=kind, subject_id=user)
        assert (found.subject.type_.value, found.subject.id) == ("user", user), found
        return next(item for item in found.items if item.scope == scope)


def utc(year, month, day):
    return datetime.datetime(year, month, day, tzinfo=datetime.timezone.utc)


def now():
    return datetime.datetime.now(datetime.timezone.utc)


@step
def scopes_are_registered(story):
    """A scope is registered once, and from then on taken from all."""
    story.holds("jane", "weather", "reports")
    new = story.models.NewScope(name="weather", description="Weather data", requires=story.models.Requires.USER)
    answer = story.ask("create_scope", body=new)
    weather = answer.parsed
    assert (answer.status_code, answer.headers["ETag"]) == (201, '"1"')
    assert answer.headers["Location"] == "/v1/scopes/weather"
    assert (weather.name, weather.requires.value, weather.enforced, weather.version) == ("weather", "user", True, 1)
    assert story.call("get_scope", "weather") == weather
    story.refuse("create_scope", body=new, status=409, code="scope_exists")
    story.call("create_scope", body=story.models.NewScope(name="reports"))
    assert [scope.name for scope in story.call("list_scopes").items] == ["reports", "weather"]
    story.holds("jane")


@step
def a_subscription_is_created(story):
    """A subscription is created, read back as it was, and grants what it names."""
    new = story.new("jane", ["weather"], utc(2026, 1, 1), utc(2098, 1, 31))
    answer = story.ask("create_subscription", body=new)
    story.subscription = answer.parsed
    assert (answer.status_code, answer.headers["ETag"]) == (201, '"1"')
    assert answer.headers["Location"] == f"/v1/subscriptions/{story.subscription.id}"
    assert story.subscription.status == story.models.Status.ACTIVE
    assert (story.subscription.valid_from, story.subscription.valid_until) == (utc(2026, 1, 1), utc(2098, 1, 31))
    assert story.call("get_subscription", story.subscription.id) == story.subscription
    story.refuse("get_subscription", uuid.UUID(int=0), status=404, code="not_found")
    story.holds("jane", "weather")
    story.holds("joe")


@step
def what_is_not_possible_is_refused(story):
    """What the domain refuses is told by the member that is wrong."""
    reversed_window = story.new("jane", ["weather"], utc(2027, 1, 1), utc(2026, 1, 1))
    story.refuse("create_subscription", body=reversed_window, status=422, code="invalid_value", pointer="#/validUntil")
    unknown = story.new("jane", ["nothing"], utc(2026, 1, 1), None)
    story.refuse("create_subscription", body=unknown, status=422, code="unknown_scopes", pointer="#/scopes")
    half = {"subject_id": "jane"}
    story.refuse("list_subscriptions", **half, status=400, code="invalid_request", pointer="?subjectType")


@step
def subscriptions_are_listed_by_pages(story):
    """A list comes in pages, each item once, in order."""
    made = {story.subscription.id}
    made.update(story.subscribe("jane", ["reports"], utc(2090, 1, day), utc(2091, 1, 1)).id for day in range(1, 5))
    story.subscribe("joe", ["reports"], utc(2090, 1, 1), None)
    kind, found, sizes, cursor = story.models.ListSubscriptionsSubjectType.USER, [], [], story.unset
    while not sizes or cursor is not story.unset:
        page = story.call("list_subscriptions", subject_type=kind, subject_id="jane", limit=2, cursor=cursor)
        found.extend(item.id for item in page.items)
        sizes.append(len(page.items))
        cursor = page.next_cursor
    assert (found, sizes) == (sorted(made, key=str), [2, 2, 1])
    active = story.call("list_subscriptions", status=story.models.ListSubscriptionsStatus.ACTIVE)
    assert [item.id for item in active.items] == [story.subscription.id]
    later = story.call("list_subscriptions", active_at=utc(2090, 6, 1), subject_type=kind, subject_id="joe")
    assert len(later.items) == 1


@step
def it_is_changed_by_who_has_seen_it(story):
    """A change goes through at the version that was read, and at no other."""
    patch = story.models.SubscriptionPatch(valid_until=utc(2099, 1, 31))
    story.refuse_to("patch", body=patch, if_match='"7"', status=412, code="version_mismatch")
    changed = story.act("patch", body=patch, if_match='"1"')
    assert (changed.version, changed.valid_until) == (2, utc(2099, 1, 31))
    story.refuse_to("patch", body=patch, if_match='"1"', status=412, code="version_mismatch")


@step
def tokens_are_told_what_is_held(story):
    """Claims of a scope and of a subscription are in the answer of a hook while it grants the scope."""
    name = f"{tollgate.CLAIMS_PREFIX}station"
    of_scope = story.models.ScopePatch.from_dict({"claims": {name: "any", f"{name}s": [1, {"near": True}]}})
    assert story.call("patch_scope", "weather", body=of_scope).claims[f"{name}s"] == [1, {"near": True}]
    of_subscription = story.models.SubscriptionPatch.from_dict({"claims": {name: "Zürich"}})
    assert story.act("patch", body=of_subscription).claims[name] == "Zürich"
    request, _ = story.request("jane", ["weather"])
    claims = story.service.hook("/v1/customize-access-token", request).expect(200)["additionalClaims"]
    until = int(story.subscription.valid_until.timestamp())
    assert claims == {
        f"{tollgate.CLAIMS_PREFIX}entitled_until": until,
        f"{tollgate.CLAIMS_PREFIX}entitlements": [{"scope": "weather", "until": until}],
        name: "Zürich",
        f"{name}s": [1, {"near": True}],
    }, claims
    foreign = story.models.SubscriptionPatch.from_dict({"claims": {"station": "Bern"}})
    story.refuse_to("patch", body=foreign, status=422, code="invalid_value", pointer="#/claims/station")
    story.act("patch", body=story.models.SubscriptionPatch.from_dict({"claims": None}))
    assert story.subscription.claims is story.unset
    gone = story.models.ScopePatch.from_dict({"claims": {name: None, f"{name}s": None}})
    assert story.call("patch_scope", "weather", body=gone).claims is story.unset


@step
def it_is_paused_and_resumed(story):
    """While it is paused it grants nothing; then it goes on."""
    paused = story.act("pause")
    assert (paused.status.value, paused.paused_until) == ("paused", story.unset)
    story.holds("jane")
    assert story.entitlement("jane", "weather").reason.value == "paused"
    story.refuse_to("pause", status=409, code="already_paused")
    assert story.act("resume").status.value == "active"
    story.holds("jane", "weather")
    story.refuse_to("resume", status=409, code="not_paused")
    ahead = story.act("pause", body=story.models.Pause(from_=utc(2090, 1, 1), until=utc(2090, 2, 1)))
    assert (ahead.status.value, ahead.paused_from, ahead.paused_until) == ("active", utc(2090, 1, 1), utc(2090, 2, 1))
    assert story.entitlement("jane", "weather").until == utc(2090, 1, 1)
    story.act("resume")


@step
def it_is_canceled_at_its_end_and_uncanceled(story):
    """A cancellation at the end takes nothing away before, and can be taken back."""
    canceled = story.act("cancel", body=story.models.Cancellation(at_end=True))
    assert (canceled.status.value, canceled.canceled_at) == ("active", utc(2099, 1, 31))
    story.holds("jane", "weather")
    assert story.act("uncancel").canceled_at is story.unset
    story.refuse_to("uncancel", status=409, code="not_canceled")


@step
def it_is_canceled_at_once_and_uncanceled(story):
    """A cancellation takes its scopes away at once, and gives them back when it is taken back."""
    past = story.models.Cancellation(at=utc(2026, 1, 1))
    story.refuse_to("cancel", body=past, status=422, code="invalid_value", pointer="#/at")
    assert story.act("cancel").status.value == "canceled"
    story.holds("jane")
    assert story.entitlement("jane", "weather").reason.value == "canceled"
    patch = story.models.SubscriptionPatch(scopes=["weather", "reports"])
    story.refuse_to("patch", body=patch, status=409, code="canceled")
    assert story.act("uncancel").status.value == "active"
    story.holds("jane", "weather")


@step
def it_is_renewed(story):
    """A renewal counts in the calendar, from the old end, and makes nothing shorter."""
    renewed = story.act("renew", body=story.models.Renewal(duration="P1M"))
    assert renewed.valid_until == utc(2099, 2, 28)
    story.refuse_to("renew", body=story.models.Renewal(valid_until=utc(2098, 1, 1)), status=409, code="not_longer")
    wrong = story.models.Renewal(duration="a month")
    story.refuse_to("renew", body=wrong, status=422, code="invalid_value", pointer="#/duration")
    neither = story.models.Renewal()
    story.refuse_to("renew", body=neither, status=400, code="invalid_request", pointer="#/validUntil")
    assert story.entitlement("jane", "weather").until == utc(2099, 2, 28)


@step
def a_late_payment_locks_nobody_out(story):
    """After its window a subscription grants in its grace, until it is renewed."""
    present = now()
    late = story.subscribe("late", ["weather"], present - 30 * DAY, present - DAY, grace_until=present + 3 * DAY)
    assert late.status.value == "grace"
    story.holds("late", "weather")
    standing = story.entitlement("late", "weather")
    assert (standing.held, standing.reason.value, standing.until) == (True, "grace", late.grace_until)
    renewal = story.models.Renewal(duration="P7D", from_=story.models.RenewedFrom.NOW)
    renewed = story.call("renew_subscription", late.id, body=renewal)
    assert (renewed.status.value, renewed.grace_until) == ("active", story.unset)
    assert present + 7 * DAY <= renewed.valid_until <= now() + 7 * DAY
    gone = story.subscribe("gone", ["weather"], present - 30 * DAY, present - 2 * DAY, grace_until=present - DAY)
    assert gone.status.value == "expired"
    story.holds("gone")


@step
def it_is_deleted_and_restored(story):
    """What is deleted is gone from every answer, until it is restored."""
    story.refuse_to("delete", if_match='"1"', status=412, code="version_mismatch")
    story.call("delete_subscription", story.subscription.id)
    story.refuse_to("get", status=404, code="not_found")
    story.holds("jane")
    assert story.entitlement("jane", "weather").reason.value == "no_subscription"
    assert story.act("restore").status.value == "active"
    assert story.call("get_subscription", story.subscription.id) == story.subscription
    story.holds("jane", "weather")
    story.refuse_to("restore", status=409, code="not_deleted")


@step
def the_catalogue_is_changed(story):
    """A scope that is not enforced is left to all, and one that is named by a subscription stays."""
    lenient = story.models.ScopePatch(enforced=False)
    assert story.call("patch_scope", "reports", body=lenient).enforced is False
    story.holds("joe", "reports")
    story.refuse("delete_scope", "reports", status=409, code="scope_in_use")
    story.call("create_scope", body=story.models.NewScope(name="unused"))
    story.call("delete_scope", "unused")
    story.refuse("get_scope", "unused", status=404, code="not_found")


@step
def a_token_does_what_its_role_may(story):
    """A token looks or changes as its role says, until it is revoked."""
    new = story.models.NewToken(name="support", role=story.models.Role.READER, expires_at=None)
    issued = story.call("create_token", body=new)
    story.refuse("create_token", body=new, status=409, code="token_exists")
    support = story.client_with(issued.token)
    assert story.call("get_subscription", story.subscription.id, client=support) == story.subscription
    story.refuse_to("cancel", client=support, status=403, code="forbidden")
    assert [token.name for token in story.call("list_tokens").items] == ["support"]
    assert story.call("revoke_token", issued.id).status.value == "revoked"
    assert story.call("get_token", issued.id).revoked_at is not story.unset
    story.refuse("list_scopes", client=support, status=401, code="unauthorized")
    story.holds("jane", "weather", "reports")


@step
def an_answer_is_explained(story):
    """An explanation tells which subscription decides, and when it is otherwise."""
    _, request = story.request("jane", ["weather", "openid"])
    explained = story.call("explain", body=story.models.ExplanationRequest(request=request, at=utc(2027, 1, 1)))
    weather, openid = explained.scopes
    assert (explained.at, explained.remove_scopes) == (utc(2027, 1, 1), [])
    assert (weather.kept, weather.reason.value, weather.subscriptions) == (True, "active", [story.subscription.id])
    assert (weather.next_.at, weather.next_.kept) == (story.subscription.valid_until, False)
    assert (openid.kept, openid.reason.value, openid.next_) == (True, "unmanaged", story.unset)
    after = story.models.ExplanationRequest(request=request, at=story.subscription.valid_until)
    explained = story.call("explain", body=after)
    assert (explained.remove_scopes, explained.scopes[0].reason.value) == (["weather"], "expired")


@step
def a_system_says_what_it_knows(story):
    """What a system says is recorded, and nothing older than what it said last."""
    key = {"source": "billing", "external_id": "sub_1"}
    story.refuse("find_subscription", **key, status=404, code="not_found")
    first = story.state("ann", ["weather"], source_version=1)
    answer = story.ask("put_subscription", **key, body=first)
    ann = answer.parsed
    assert (answer.status_code, answer.headers["ETag"]) == (201, '"1"')
    assert answer.headers["Location"] == f"/v1/subscriptions/{ann.id}"
    assert (ann.source, ann.external_id, ann.source_version, ann.version) == ("billing", "sub_1", 1, 1)
    story.holds("ann", "weather", "reports")
    assert story.put("sub_1", first) == ann, "said again"
    canceled = story.put("sub_1", story.state("ann", ["weather"], source_version=3, canceled_at=utc(2026, 2, 1)))
    assert (canceled.id, canceled.version, canceled.status.value) == (ann.id, 2, "canceled")
    story.holds("ann", "reports")
    outdated = story.ask("put_subscription", **key, body=story.state("ann", ["weather"], source_version=2))
    assert (outdated.status_code, outdated.headers["ETag"], outdated.parsed) == (200, '"2"', canceled)
    assert story.call("find_subscription", **key) == canceled
    story.holds("ann", "reports")
    bare = story.state("ann", ["weather"])
    pointer = "#/sourceVersion"
    story.refuse("put_subscription", **key, body=bare, status=422, code="invalid_value", pointer=pointer)
    newer = story.state("ann", ["weather"], source_version=4)
    story.refuse("put_subscription", **key, body=newer, if_match='"1"', status=412, code="version_mismatch")
    taken = story.new("bob", ["weather"], utc(2026, 1, 1), None, **key)
    story.refuse("create_subscription", body=taken, status=409, code="external_id_exists")
    half = story.new("bob", ["weather"], utc(2026, 1, 1), None, source="billing")
    pointer = "#/externalId"
    story.refuse("create_subscription", body=half, status=400, code="invalid_request", pointer=pointer)
    assert story.put("sub_1", newer, if_match='"2"').status.value == "active"
    story.holds("ann", "weather", "reports")


@step
def the_list_is_filtered(story):
    """Subscriptions are found by where they come from, by their last change, and after they were deleted."""
    ann = story.call("find_subscription", source="billing", external_id="sub_1")
    assert story.call("list_subscriptions", source="billing").items == [ann]
    assert story.call("list_subscriptions", source="elsewhere").items == []
    changed = story.call("list_subscriptions", updated_since=ann.updated_at).items
    assert changed == [ann], changed
    gone = story.subscribe("gil", ["weather"], utc(2026, 1, 1), None)
    story.call("delete_subscription", gone.id)
    assert story.list("gil") == []
    (deleted,) = story.list("gil", include_deleted=True)
    assert (deleted.id, deleted.version, deleted.deleted_at) == (gone.id, 2, deleted.updated_at)
    pages = story.pages("list_subscriptions", updated_since=utc(2026, 1, 1), include_deleted=True, limit=3)
    found = [item for page in pages for item in page]
    assert found == sorted(found, key=lambda item: (item.updated_at, str(item.id)))
    assert (len(pages) > 1, found[-1].id) == (True, gone.id)


@step
def what_is_sent_twice_is_done_once(story):
    """A key makes a request be done once, and gives its answer again."""
    new = story.new("kim", ["weather"], utc(2026, 1, 1), None)
    first, again = (story.ask("create_subscription", body=new, idempotency_key="order-1") for _ in range(2))
    assert (first.status_code, first.parsed) == (again.status_code, again.parsed) == (201, story.list("kim")[0])
    assert [first.headers[name] for name in ["ETag", "Location"]] == [again.headers[name] for name in ["ETag", "Location"]]
    assert len(story.list("kim")) == 1
    other = story.new("kim", ["reports"], utc(2026, 1, 1), None)
    reused = {"status": 422, "code": "idempotency_key_reused"}
    story.refuse("create_subscription", body=other, idempotency_key="order-1", **reused)
    duration = story.models.Renewal(valid_until=utc(2098, 1, 1))
    bounded = story.subscribe("kim", ["weather"], utc(2026, 1, 1), utc(2097, 1, 1))
    renewed = [
        story.call("renew_subscription", bounded.id, body=duration, idempotency_key="order-2") for _ in range(2)
    ]
    assert renewed[0] == renewed[1] and renewed[0].version == 2, renewed
    story.refuse("renew_subscription", bounded.id, body=duration, status=409, code="not_longer")


@step
def many_are_written_at_once(story):
    """A batch is done as one, or each of its writes is, with a status of its own."""
    batch = lambda items, **members: story.models.Batch.from_dict({"items": items, **members})
    new = lambda user, scope: {"create": story.new(user, [scope], utc(2026, 1, 1), None).to_dict()}
    refused = batch([new("max", "weather"), new("max", "nothing")], atomic=True)
    pointer = "#/items/1/create/scopes"
    story.refuse("write_subscriptions", body=refused, status=422, code="unknown_scopes", pointer=pointer)
    assert story.list("max") == []
    two = batch([{"id": str(story.subscription.id), "pause": {}, "resume": {}}], atomic=True)
    story.refuse("write_subscriptions", body=two, status=400, code="invalid_request", pointer="#/items/0")
    said = story.state("max", ["weather"]).to_dict() | {"source": "billing", "externalId": "sub_2"}
    answer = story.ask("write_subscriptions", body=batch([new("max", "weather"), {"put": said}], atomic=True))
    created, put = answer.parsed.items
    assert (answer.status_code, created.status, created.outcome.value) == (200, 201, "created")
    assert (put.status, put.outcome.value, put.subscription.external_id) == (201, "created", "sub_2")
    both = sorted([created.subscription, put.subscription], key=lambda item: str(item.id))
    assert story.list("max") == both, f"{story.list('max')}, but {both} were made"
    old = str(created.subscription.id)
    items = [{"id": old, "cancel": {}}, {"id": old, "cancel": {}}, {"put": said}, {"id": old, "delete": {}, "version": 2}]
    answer = story.ask("write_subscriptions", body=batch(items))
    assert answer.status_code == 207
    canceled, twice, unchanged, deleted = answer.parsed.items
    assert (canceled.status, canceled.outcome.value, canceled.subscription.status.value) == (200, "changed", "canceled")
    assert (twice.status, twice.outcome, twice.subscription) == (409, story.unset, story.unset)
    assert (twice.problem.status, twice.problem.code) == (409, "already_canceled")
    assert (unchanged.status, unchanged.outcome.value) == (200, "unchanged")
    assert (deleted.status, deleted.subscription.id) == (200, created.subscription.id)
    assert story.list("max") == [put.subscription]


@step
def files_are_imported_and_exported(story):
    """A file is tried, imported but for its bad lines, imported again without effect, and comes out as it went in."""
    line = lambda number, **members: json.dumps(
        story.state("ned", ["weather"], source_version=1).to_dict()
        | {"source": "files", "externalId": f"line {number}"}
        | members
    )
    text = "\n".join([line(1), line(2, scopes=["nothing"]), "", "{", line(3, validUntil=None)]) + "\n"
    told = lambda report: [(problem.line, problem.problem.status, problem.problem.code) for problem in report.problems]
    counts = lambda report: (report.lines, report.created, report.changed, report.unchanged, report.outdated)
    bad = [(2, 422, "unknown_scopes"), (4, 400, "invalid_json")]
    for dry_run, expected in [(True, (4, 2, 0, 0, 0)), (False, (4, 2, 0, 0, 0)), (False, (4, 0, 0, 0, 2))]:
        report = story.import_file("application/x-ndjson", text, dry_run=dry_run)
        assert (report.dry_run, report.complete, report.refused) == (dry_run, True, 2), report
        assert (counts(report), told(report)) == (expected, bad), report
        assert len(story.list("ned")) == (0 if dry_run else 2)
    story.holds("ned", "weather", "reports")

    exported = story.export_file("ndjson", "application/x-ndjson", source="files")
    items = [story.models.Subscription.from_dict(json.loads(item)) for item in exported.splitlines()]
    assert items == story.list("ned"), exported
    report = story.import_file("application/x-ndjson", exported)
    assert (counts(report), told(report)) == ((2, 0, 0, 0, 2), []), report

    names = "source,externalId,sourceVersion,subjectType,subjectId,scopes,validFrom,validUntil"
    window = "2026-01-01T00:00:00Z,2098-01-31T00:00:00Z"
    rows = [
        f'files,line 1,2,user,ned,weather reports,{window}',
        f'files,"line, ""4""",1,user,ned,weather,{window}',
        f"files,line 5,1,somebody,ned,weather,{window}",
    ]
    text = "\r\n".join([names, *rows]) + "\r\n"
    bad = [(4, 400, "invalid_request")]
    for dry_run, expected in [(True, (3, 1, 1, 0, 0)), (False, (3, 1, 1, 0, 0)), (False, (3, 0, 0, 0, 2))]:
        report = story.import_file("text/csv; charset=utf-8", text, dry_run=dry_run)
        assert (report.dry_run, counts(report), told(report)) == (dry_run, expected, bad), report
    exported = story.export_file("csv", "text/csv", source="files")
    assert (len(exported.splitlines()), exported.count('"line, ""4"""')) == (4, 1), exported
    report = story.import_file("text/csv", exported)
    assert (counts(report), told(report)) == ((3, 0, 0, 0, 3), []), report

    payload = importlib.import_module(f"{PACKAGE}.types").File(payload=io.BytesIO(b"{}"))
    client = story.client_with(story.service.token)
    client.get_httpx_client().event_hooks = {
        "request": [lambda request: request.headers.update({"Content-Type": "application/json"})]
    }
    unknown = {"status": 415, "code": "unsupported_media_type"}
    story.refuse("import_subscriptions", body=payload, client=client, **unknown)


@step
def its_history_is_told(story):
    """Every change of the subscription is in its history, one after the other."""
    pages = story.pages("get_history", story.subscription.id, limit=4)
    changes = [change for page in pages for change in page]
    assert [len(page) for page in pages[:-1]] == [4] * (len(pages) - 1) and len(pages) > 2
    done = [change.action for change in changes]
    assert (done[0], done[-2:]) == ("create", ["delete", "restore"]), done
    assert {"patch", "pause", "resume", "cancel", "uncancel", "renew"} <= set(done), done
    versions = [change.subscription.after.version for change in changes]
    assert versions == list(range(1, story.subscription.version + 1)), versions
    for before, after in zip(changes, changes[1:]):
        # The status is what it was at the instant of each change.
        assert before.subscription.after.to_dict() | {"status": ""} == after.subscription.before.to_dict() | {"status": ""}
    assert (changes[0].actor, changes[0].subscription.before) == (changes[-1].actor, story.unset)
    assert changes[-1].subscription.after == story.subscription
    story.refuse("get_history", uuid.UUID(int=0), status=404, code="not_found")
    wrong = {"status": 400, "code": "invalid_request", "pointer": "?cursor"}
    story.refuse("get_history", story.subscription.id, cursor="elsewhere", **wrong)


@step
def all_changes_are_followed(story):
    """Whoever follows the changes gets each one once, and goes on where the last answer ended."""
    since, found = story.unset, []
    while True:
        changes = story.call("list_changes", since=since, limit=7)
        found.extend(changes.items)
        since = changes.next_
        if not changes.has_more:
            break
    assert len(found) > 40
    of_story = [change for change in found if change.subscription and change.subscription.id == story.subscription.id]
    assert of_story == [change for page in story.pages("get_history", story.subscription.id) for change in page]
    assert [change.scope.name for change in found if change.scope][:2] == ["weather", "reports"]
    later = story.subscribe("olga", ["weather"], utc(2026, 1, 1), None)
    deadline = time.monotonic() + SHOWN_SECONDS
    while not (changes := story.call("list_changes", since=since)).items:
        assert time.monotonic() < deadline, "the change does not show"
        since = changes.next_
        time.sleep(0.1)
    assert [change.subscription.after for change in changes.items] == [later]
    assert story.call("list_changes", since=changes.next_).items == []
    story.refuse("list_changes", since="x", status=400, code="invalid_request", pointer="?since")
