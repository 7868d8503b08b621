"""The life of a subscription, with a client that openapi-python-client makes of the contract of the management API.

What the client cannot be made of, or cannot read, is a fault of the contract. Beside each step stands what the hooks
answer then. A new step is a function with `@step`, which runs after those above it; an operation that no step asks for
is a failure.
"""

import datetime
import importlib
import pathlib
import subprocess
import sys
import uuid

import tollgate

PACKAGE = "tollgate_management"
STEPS = []
DAY = datetime.timedelta(days=1)


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
    command = [generator, "generate", "--path", tollgate.ROOT / "openapi" / "management.yaml", "--meta", "none"]
    subprocess.run([*command, "--fail-on-warning", "--output-path", PACKAGE], cwd=folder, check=True)
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

    def holds(self, user, *scopes):
        """Holds what both hooks answer about a user to the scopes that are left, of those that are asked for."""
        asked = ["openid", "weather", "reports"]
        request = {"user": {"id": user}, "client": {"id": "app"}, "scopes": asked}
        left = ["openid", *(scope for scope in asked if scope in scopes)]
        removed = [scope for scope in asked if scope not in left]
        answer = self.service.hook("/v1/customize-access-token", request).expect(200)
        assert answer == {"removeScopes": removed, "additionalClaims": {}}, f"{user}: {answer}, but {left} are left"
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
