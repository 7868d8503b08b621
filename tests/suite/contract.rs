//! The contracts: the files are what the code makes, and what they say is what is served.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tollgate::{
    domain::{claims::ClaimsPrefix, token::Role},
    http::{
        auth::{self, guard::Allowance},
        contract::Contract,
    },
    service::Policy,
};

use crate::{
    described::{Document, Operation, elements, faults, has_null, members, parse_strictly},
    support::{
        ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, App, HOOK_CREDENTIALS, JSON, Options, TOKEN, on_both, timestamp,
    },
};

/// The usual policy of tests, with claims whose names begin with `x:`.
fn with_claims() -> Policy {
    let claims_prefix = Some(ClaimsPrefix::parse("x:").expect("a prefix"));
    Policy { claims_prefix, ..Options::default().policy }
}

/// A subscription id that no subscription has.
const NO_ID: &str = "00000000-0000-7000-8000-000000000000";

/// The file of a contract.
fn path(contract: Contract) -> String {
    format!("{}/openapi/{}.yaml", env!("CARGO_MANIFEST_DIR"), contract.as_str())
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever changes the API asks for the files to be written anew")]
fn the_files_are_what_the_code_makes() {
    for contract in Contract::ALL {
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path(contract), contract.yaml()).expect("written");
        }
        let published = std::fs::read_to_string(path(contract)).expect("the file of the contract");
        assert!(
            published == contract.yaml(),
            "openapi/{}.yaml is not what the code makes: run `make openapi` and review the difference",
            contract.as_str(),
        );
    }
}

#[test]
fn the_documents_are_strict_and_whole() {
    for contract in Contract::ALL {
        let document = Document::of(contract);
        assert_eq!(parse_strictly(&contract.json()), Ok(document.root.clone()), "one document, in two notations");
        assert_eq!(document.root["openapi"], "3.0.3");
        assert!(!has_null(&document.root), "null stands for nothing in a document");
        let mut references = 0;
        walk(&document.root, &mut |value| {
            if let Some(reference) = value.get("$ref") {
                references += 1;
                assert!(document.resolve(reference.as_str().expect("text")).is_some(), "{reference} leads nowhere");
                assert_eq!(members(value).count(), 1, "what stands beside {reference} is ignored");
            }
            let schemas = members(&value["schemas"]).map(|(_, schema)| schema).chain(value.get("schema"));
            for schema in schemas {
                assert_eq!(faults(schema), "", "{}", contract.as_str());
            }
        });
        assert!(references > 10, "the walk has found the references");
    }
}

fn walk(value: &Value, visit: &mut impl FnMut(&Value)) {
    visit(value);
    for inner in elements(value).iter().chain(members(value).map(|(_, inner)| inner)) {
        walk(inner, visit);
    }
}

#[test]
fn every_operation_says_who_may_call_it_and_how_it_is_refused() {
    let mut ids = BTreeSet::new();
    for document in Document::all() {
        for operation in document.operations() {
            let Operation { id, path, described, .. } = &operation;
            assert!(!id.is_empty() && ids.insert(id.clone()), "{path}: its operationId is missing or not its own");
            assert!(described["summary"].is_string() && !elements(&described["tags"]).is_empty(), "{id}");
            let schemes: Vec<_> = elements(&described["security"]).iter().flat_map(members).collect();
            assert!(!schemes.is_empty(), "{id} needs no credentials");
            for (scheme, _) in schemes {
                assert!(document.root["components"]["securitySchemes"].get(scheme).is_some(), "{id}: {scheme}");
            }
            let statuses = operation.statuses();
            let successes: Vec<_> = statuses.iter().filter(|status| (200..300).contains(*status)).collect();
            match id.as_str() {
                "put-subscription" => assert_eq!(successes, [&200, &201]),
                "write-subscriptions" => assert_eq!(successes, [&200, &207]),
                _ => assert_eq!(successes.len(), 1, "{id}"),
            }
            for status in [400, 401, 500, 503] {
                assert!(statuses.contains(&status), "{id} may answer {status}");
            }
            for status in statuses.into_iter().filter(|status| *status >= 400) {
                let response = &described["responses"][status.to_string()];
                let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
                assert_eq!(response["content"], problem, "{id} {status}");
                assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{id} {status}");
            }
            let in_path: Vec<_> =
                path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).collect();
            let described: Vec<_> = operation.parameters("path").map(|parameter| parameter["name"].clone()).collect();
            assert_eq!(json!(in_path), json!(described), "{id}");
            assert!(operation.parameters("path").all(|parameter| parameter["required"] == true), "{id}");
        }
    }
}

#[test]
fn the_authorization_table_lists_every_operation_and_no_other() {
    let described: BTreeSet<String> =
        Document::all().iter().flat_map(Document::operations).map(|operation| operation.id).collect();
    let listed: BTreeSet<String> = auth::AUTHORIZATION.iter().map(|(id, _)| (*id).to_owned()).collect();
    assert_eq!(described, listed);
    assert_eq!(listed.len(), auth::AUTHORIZATION.len(), "no operation has two rows");
    for document in Document::all() {
        for Operation { id, method, path, .. } in document.operations() {
            let expected = match (document.contract, method.as_str()) {
                (Contract::Hooks, _) => auth::Access::Hook,
                (Contract::Management, _) if path.starts_with("/v1/tokens") => auth::Access::Api(Role::Admin),
                (Contract::Management, "GET") => auth::Access::Api(Role::Reader),
                // A question that needs a body.
                (Contract::Management, "POST") if path == "/v1/explain" => auth::Access::Api(Role::Reader),
                (Contract::Management, _) if path.starts_with("/v1/scopes") => auth::Access::Api(Role::Admin),
                (Contract::Management, _) => auth::Access::Api(Role::Writer),
            };
            assert_eq!(auth::access(&id), Some(expected), "{id}");
        }
    }
}

#[test]
fn an_end_has_to_be_told_and_may_be_null() {
    let document = Document::of(Contract::Management);
    for (schema, required) in [("NewSubscription", true), ("Subscription", true), ("SubscriptionPatch", false)] {
        let schema = &document.root["components"]["schemas"][schema];
        assert_eq!(schema["properties"]["validUntil"]["nullable"], true, "{schema}");
        assert_eq!(elements(&schema["required"]).contains(&json!("validUntil")), required, "{schema}");
    }
}

/// Bodies that the operation takes, with all the members that it describes among them.
fn samples(operation: &str) -> Vec<Value> {
    let window = ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00.000001Z");
    let mut subscription = json!({
        "subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validFrom": window.0, "validUntil": window.1,
        "graceUntil": "2027-02-01T00:00:00Z", "claims": {"x:plan": {"tier": ["gold"]}},
    });
    if matches!(operation, "create-subscription" | "put-subscription") {
        subscription["pausedFrom"] = "2026-11-01T00:00:00Z".into();
        subscription["pausedUntil"] = "2026-11-02T00:00:00Z".into();
        subscription["canceledAt"] = "2026-12-01T00:00:00Z".into();
        subscription["sourceVersion"] = 7.into();
    }
    if operation == "create-subscription" {
        subscription["source"] = "billing".into();
        subscription["externalId"] = "sub_1".into();
    }
    let one = match operation {
        "customize-access-token" | "customize-token" => {
            json!({"user": {"id": "u"}, "client": {"id": "c"}, "scopes": ["email", "other"]})
        }
        "explain" => json!({
            "request": {"user": {"id": "u"}, "client": {"id": "c"}, "scopes": ["email", "other"]}, "at": window.0,
            "knownAt": "2026-06-15T12:00:00Z",
        }),
        "create-scope" => {
            json!({"name": "fresh", "description": "text", "requires": "any", "enforced": true, "claims": {"x:a": "b"}})
        }
        "patch-scope" => {
            json!({"name": "email", "description": "text", "requires": "any", "enforced": true, "claims": {"x:a": "b"}})
        }
        "create-subscription" | "put-subscription" | "patch-subscription" => subscription,
        "write-subscriptions" => {
            let new = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validUntil": null});
            json!({"atomic": false, "items": [{"create": new}]})
        }
        "cancel-subscription" => return vec![json!({"at": "2026-12-01T00:00:00Z"}), json!({"atEnd": true})],
        "pause-subscription" => json!({"from": "2026-07-01T00:00:00Z", "until": "2026-08-01T00:00:00Z"}),
        "renew-subscription" => {
            return vec![
                json!({"validUntil": "2028-01-01T00:00:00Z", "graceUntil": "2028-01-02T00:00:00Z"}),
                json!({"duration": "P1M", "from": "end", "graceUntil": "2999-01-01T00:00:00Z"}),
            ];
        }
        "uncancel-subscription" | "resume-subscription" | "restore-subscription" | "revoke-token" => json!({}),
        "create-token" => json!({"name": "fresh", "role": "reader", "expiresAt": window.1}),
        _ => return Vec::new(),
    };
    vec![one]
}

fn sample(operation: &str) -> Option<Value> {
    samples(operation).into_iter().next()
}

/// Whether the members of a body, each as it is described, go together: what a schema cannot say.
fn go_together(operation: &str, body: &Value) -> bool {
    // In a merge patch null takes a member away, but not an item.
    let is_patch = operation.starts_with("patch");
    let is_claim = |(name, value): (&String, &Value)| {
        let stays = |value: &Value| if is_patch { elements(value).iter().any(has_null) } else { has_null(value) };
        let has_null = stays(value) || members(value).any(|(_, value)| stays(value));
        (is_patch && value.is_null()) || (name.starts_with("x:") && !has_null)
    };
    if !members(&body["claims"]).all(is_claim) {
        return false;
    }
    match operation {
        // There is no grace after a window without an end. What is put here was put with a version before.
        "create-subscription" | "put-subscription" | "patch-subscription" => {
            let has_grace_without_end =
                body.get("validUntil").is_some_and(Value::is_null) && body["graceUntil"].is_string();
            !has_grace_without_end && (operation != "put-subscription" || body.get("sourceVersion").is_some())
        }
        _ => true,
    }
}

/// The ids of a subscription and of a token.
#[derive(Debug, Clone)]
struct Ids {
    subscription: String,
    token: String,
}

/// The path of an operation upon the scope `email`, or the subscription or token of these ids.
fn target(operation: &Operation, ids: &Ids) -> String {
    let query = match operation.id.as_str() {
        "get-entitlements" => "?subjectType=user&subjectId=u",
        "find-subscription" | "put-subscription" => "?source=billing&externalId=a",
        _ => "",
    };
    let id = if operation.path.starts_with("/v1/tokens") { &ids.token } else { &ids.subscription };
    operation.path.replace("{name}", "email").replace("{id}", id) + query
}

/// A line of an import.
fn line(id: &str) -> Value {
    json!({
        "source": "import", "externalId": id, "subject": {"type": "user", "id": "u"}, "scopes": ["email"],
        "validUntil": null,
    })
}

/// The media type of an operation's body.
fn media(operation: &Operation) -> (&'static str, &'static str) {
    if operation.id == "import-subscriptions" { ("content-type", "application/x-ndjson") } else { JSON }
}

fn credentials(operation: &Operation) -> (&'static str, &'static str) {
    if operation.is_hook() { HOOK_CREDENTIALS } else { ADMIN_CREDENTIALS }
}

/// A scope `email`, a subscription that names it, and a token.
async fn furnish(app: &App) -> Ids {
    app.register("email").await;
    let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
    Ids { subscription: id_of(&created), token: id_of(&app.issue("furnished", "reader", None).await) }
}

fn id_of(created: &Value) -> String {
    created["id"].as_str().expect("an id").to_owned()
}

/// Every way to change one member of a body: taken away, of another type, empty, unknown.
fn variants(body: &Value) -> Vec<Value> {
    let mut variants = Vec::new();
    let mut others =
        vec![json!(null), json!(5), json!(false), json!(""), json!([]), json!({}), json!([null]), json!([5])];
    match body {
        Value::Object(object) => {
            for (name, value) in object {
                let with = |value: Value| {
                    let mut object = object.clone();
                    object.insert(name.clone(), value);
                    Value::Object(object)
                };
                let mut without = object.clone();
                without.remove(name);
                variants.push(Value::Object(without));
                variants.extend(self::variants(value).into_iter().map(with));
            }
            // What a struct might be read from, member by member.
            variants.push(object.values().cloned().collect());
            variants.push(object.values().rev().cloned().collect());
            let mut more = object.clone();
            more.insert("unknownMember".to_owned(), json!(1));
            variants.push(Value::Object(more));
        }
        Value::Array(items) => {
            let twice = items.iter().chain(items).cloned().collect();
            variants.push(Value::Array(twice));
        }
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
    variants.append(&mut others);
    variants
}

/// A value for each query parameter of an operation, all of which it takes.
fn sample_query(operation: &Operation) -> Vec<(&str, &'static str)> {
    let sample = |parameter: &'_ Value| match parameter["name"].as_str().expect("a name") {
        "subjectType" => Some("user"),
        "subjectId" => Some("u"),
        "scope" => Some("email"),
        "status" => Some("active"),
        "activeAt" | "at" | "updatedSince" => Some("2026-06-15T14:00:00.5%2B02:00"),
        "source" => Some("billing"),
        "externalId" => Some("a"),
        "includeDeleted" | "dryRun" => Some("true"),
        "format" => Some("csv"),
        "limit" => Some("200"),
        "cursor" | "since" => None,
        other => panic!("no sample of {other}"),
    };
    let parameters = operation.parameters("query");
    parameters.filter_map(|parameter| Some((parameter["name"].as_str()?, sample(parameter)?))).collect()
}

fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{path}?{}", pairs.join("&"))
}

/// What Access may send: each optional member of either hook absent, null where that is known, and of every shape.
fn access_requests() -> Vec<Value> {
    let optional = [
        ("user", json!([null, {"id": "u"}, {"id": ""}])),
        ("userClaims", json!([{}, {"name": "John", "more": {"a": [1, null]}, "none": null}])),
        (
            "executionContext",
            json!([{}, {"ipAddress": "203.0.113.7", "triggeredBy": ["/oauth/token", "other"]}, {"triggeredBy": "/oauth/token"}]),
        ),
        ("contextCustomParams", json!([null, {}, {"on_behalf_of": ["a", "b"], "empty": []}])),
        ("notKnownYet", json!([[{"more": null}]])),
    ];
    let mut requests: Vec<Value> = [json!([]), json!(["email", "openid", "email"])]
        .map(|scopes| json!({"client": {"id": "c"}, "scopes": scopes}))
        .into();
    for (name, values) in optional {
        let shorter = requests.clone();
        for value in elements(&values) {
            requests.extend(shorter.iter().cloned().map(|mut request| {
                request[name] = value.clone();
                request
            }));
        }
    }
    requests
}

/// Asks operations, and holds each answer to its description.
struct Walk<'a> {
    app: &'a App,
    documents: [Document; 2],
    seen: BTreeMap<String, BTreeSet<u16>>,
}

impl<'a> Walk<'a> {
    fn new(app: &'a App) -> Self {
        Self { app, documents: Document::all(), seen: BTreeMap::new() }
    }

    fn operations(&self) -> Vec<Operation> {
        self.documents.iter().flat_map(Document::operations).collect()
    }

    /// Asks with the right credentials and a JSON body.
    async fn ask(&mut self, id: &str, path: &str, body: Option<&Value>) -> Answer {
        self.ask_with(id, path, &[JSON], body.map_or_else(String::new, Value::to_string)).await
    }

    async fn ask_with(&mut self, id: &str, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let operation = self.operations().into_iter().find(|operation| operation.id == id).expect("an operation");
        let headers = [headers, &[credentials(&operation)]].concat();
        self.send(&operation, path, &headers, body).await
    }

    async fn send(&mut self, operation: &Operation, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let answer = self.app.send(&operation.method, path, headers, body).await;
        self.check(operation, &answer);
        self.seen.entry(operation.id.clone()).or_default().insert(answer.status.as_u16());
        answer
    }

    fn check(&self, operation: &Operation, answer: &Answer) {
        let (id, status) = (&operation.id, answer.status.as_u16());
        let response = &operation.described["responses"][status.to_string()];
        assert!(response.is_object(), "{id} answers {status}, which is not described: {}", answer.text());
        for (name, _) in members(&response["headers"]) {
            assert!(answer.header(name).is_some_and(|value| !value.is_empty()), "{id} {status} lacks {name}");
        }
        assert!(answer.header("x-request-id").is_some(), "{id} {status}");
        if operation.id == "export-subscriptions" && status == 200 {
            let media_type = answer.header("content-type").expect("a media type");
            assert!(response["content"].get(media_type).is_some(), "{media_type}");
            return;
        }
        let Some((media_type, content)) = members(&response["content"]).next() else {
            assert!(answer.body.is_empty(), "{id} {status} has an undescribed body");
            return;
        };
        assert_eq!(answer.header("content-type"), Some(media_type.as_str()), "{id} {status}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        for document in &self.documents {
            if document.operations().iter().any(|described| described.id == *id) {
                assert_eq!(document.violations(&content["schema"], &body), [""; 0], "{id} {status}: {body}");
                for (name, _) in members(&body) {
                    let schema = document.schema(&content["schema"]);
                    assert!(schema["properties"].get(name).is_some(), "{id} {status} has an undescribed {name}");
                }
            }
        }
    }

    /// Holds the statuses that were seen of each operation to those that can be brought about.
    fn finish(&self) {
        for operation in self.operations() {
            let has_body = operation.request_schema().is_some();
            let expected = operation.statuses().into_iter().filter(|status| match status {
                // Who lacks a role is another test's; a body that is slow is not waited for here; no fault is expected;
                // conflicts are the script's; and what is gone is the history's.
                403 | 408 | 409 | 410 | 500 => false,
                422 => has_body,
                _ => true,
            });
            let seen = self.seen.get(&operation.id).cloned().unwrap_or_default();
            for status in expected {
                assert!(seen.contains(&status), "{} was never seen to answer {status}: {seen:?}", operation.id);
            }
        }
        for conflicting in [
            "create-scope",
            "delete-scope",
            "create-subscription",
            "write-subscriptions",
            "patch-subscription",
            "cancel-subscription",
            "uncancel-subscription",
            "pause-subscription",
            "resume-subscription",
            "renew-subscription",
            "restore-subscription",
            "create-token",
            "revoke-token",
        ] {
            assert!(self.seen[conflicting].contains(&409), "{conflicting}");
        }
    }

    /// All that goes well, and every conflict; gives the ids of what is left.
    #[expect(clippy::too_many_lines, reason = "a script")]
    async fn succeed(&mut self) -> Ids {
        let operations = self.operations();
        let taken = |id: &str| sample(id).expect("a body");
        for name in ["email", "other", "unused"] {
            self.ask("create-scope", "/v1/scopes", Some(&json!({"name": name}))).await.expect(201);
        }
        self.ask("create-scope", "/v1/scopes", Some(&json!({"name": "email"})))
            .await
            .expect_problem(409, "scope_exists");
        self.ask("patch-scope", "/v1/scopes/email", Some(&taken("patch-scope"))).await.expect(200);
        self.ask("get-scope", "/v1/scopes/email", None).await.expect(200);
        self.ask("delete-scope", "/v1/scopes/unused", None).await;
        let create = taken("create-subscription");
        let mut id = String::new();
        for name in ["first", "second"] {
            let mut create = taken("create-token");
            create["name"] = json!(name);
            let created = self.ask("create-token", "/v1/tokens", Some(&create)).await;
            let location = created.header("location").expect("a place").to_owned();
            assert_eq!(created.header("cache-control"), Some("no-store"));
            let mut body = created.expect(201);
            assert!(body.as_object_mut().and_then(|body| body.remove("token")).is_some(), "the secret is shown here");
            assert_eq!(self.ask("get-token", &location, None).await.expect(200), body, "and here it is not");
            self.ask("create-token", "/v1/tokens", Some(&create)).await.expect_problem(409, "token_exists");
        }
        for external_id in ["1", "2"] {
            let mut create = create.clone();
            create["externalId"] = external_id.into();
            let created = self.ask("create-subscription", "/v1/subscriptions", Some(&create)).await;
            let location = created.header("location").expect("a place").to_owned();
            let body = created.expect(201);
            assert_eq!(self.ask("get-subscription", &location, None).await.expect(200), body);
            body["id"].as_str().expect("an id").clone_into(&mut id);
            let again = self.ask("create-subscription", "/v1/subscriptions", Some(&create)).await;
            again.expect_problem(409, "external_id_exists");
            for is_atomic in [true, false] {
                let batch = json!({"atomic": is_atomic, "items": [{"create": create}]});
                let answer = self.ask("write-subscriptions", "/v1/subscriptions/batch", Some(&batch)).await;
                assert_eq!(answer.status, if is_atomic { 409 } else { 207 });
            }
        }
        let empty = json!({"atomic": true, "items": [{"id": id, "patch": {}}]});
        self.ask("write-subscriptions", "/v1/subscriptions/batch", Some(&empty)).await.expect(200);
        let by_source = "/v1/subscriptions/by-external-id?source=billing&externalId=a";
        self.ask("find-subscription", by_source, None).await.expect_problem(404, "not_found");
        for status in [201, 200] {
            self.ask("put-subscription", by_source, Some(&taken("put-subscription"))).await.expect(status);
        }
        self.ask("find-subscription", by_source, None).await.expect(200);
        let file = format!("{}\n\n{{\n", line("7"));
        let import = "/v1/subscriptions/import";
        let ndjson = ("content-type", "application/x-ndjson");
        let report = self.ask_with("import-subscriptions", import, &[ndjson], file).await.expect(200);
        assert_eq!((&report["created"], &report["refused"]), (&json!(1), &json!(1)), "{report}");
        let csv = ("content-type", "text/csv; charset=utf-8");
        let refused = self.ask_with("import-subscriptions", import, &[csv], "id\n".to_owned()).await;
        refused.expect_problem(400, "invalid_file");
        let refused = self.ask("import-subscriptions", import, Some(&line("7"))).await;
        refused.expect_problem(415, "unsupported_media_type");
        let key = ("idempotency-key", "spent");
        let scope = json!({"name": "keyed"}).to_string();
        self.ask_with("create-scope", "/v1/scopes", &[JSON, key], scope).await.expect(201);
        for (list, path) in
            [("list-scopes", "/v1/scopes"), ("list-subscriptions", "/v1/subscriptions"), ("list-tokens", "/v1/tokens")]
        {
            let operation = operations.iter().find(|operation| operation.id == list).expect("a list").clone();
            let first = self.ask(list, &format!("{path}?limit=1"), None).await.expect(200);
            let cursor = first["nextCursor"].as_str().expect("another page");
            let last = self.ask(list, &format!("{path}?limit=1&cursor={cursor}"), None).await.expect(200);
            assert!(last["items"] != first["items"], "{last}");
            let whole = self.ask(list, &format!("{path}?limit=200"), None).await.expect(200);
            assert!(whole.get("nextCursor").is_none(), "{whole}");
            self.ask(list, &with_query(path, &sample_query(&operation)), None).await.expect(200);
        }
        let path = format!("/v1/subscriptions/{id}");
        let feed = self.ask("list-changes", "/v1/changes?limit=2", None).await.expect(200);
        let next = feed["next"].as_str().expect("a place");
        self.ask("list-changes", &format!("/v1/changes?since={next}"), None).await.expect(200);
        self.ask("get-history", &format!("{path}/history"), None).await.expect(200);
        for format in ["ndjson", "csv"] {
            let exported = format!("/v1/subscriptions/export?format={format}");
            assert_eq!(self.ask("export-subscriptions", &exported, None).await.status, 200);
        }
        self.ask("uncancel-subscription", &format!("{path}/uncancel"), None).await.expect(200);
        let first_pause = self.ask("resume-subscription", &format!("{path}/resume"), None).await.expect(200);
        assert_eq!(first_pause.get("pausedFrom"), None);
        self.ask("patch-subscription", &path, Some(&taken("patch-subscription"))).await.expect(200);
        for renewal in samples("renew-subscription") {
            self.ask("renew-subscription", &format!("{path}/renew"), Some(&renewal)).await.expect(200);
        }
        let open_ended = json!({"validUntil": null, "graceUntil": null});
        self.ask("patch-subscription", &path, Some(&open_ended)).await.expect(200);
        let month = json!({"duration": "P1M"});
        self.ask("renew-subscription", &format!("{path}/renew"), Some(&month)).await.expect_problem(409, "open_ended");
        for (verb, problem) in [
            ("restore", Some("not_deleted")),
            ("resume", Some("not_paused")),
            ("pause", None),
            ("pause", Some("already_paused")),
            ("resume", None),
            ("uncancel", Some("not_canceled")),
            ("cancel", None),
            ("uncancel", None),
            ("cancel", None),
        ] {
            let answer = self.ask(&format!("{verb}-subscription"), &format!("{path}/{verb}"), None).await;
            match problem {
                Some(code) => answer.expect_problem(409, code),
                None => answer.expect(200),
            };
        }
        let again = self.ask("cancel-subscription", &format!("{path}/cancel"), Some(&json!({}))).await;
        again.expect_problem(409, "already_canceled");
        let change = json!({"validUntil": null, "validFrom": "2026-01-02T00:00:00Z"});
        self.ask("patch-subscription", &path, Some(&change)).await.expect_problem(409, "canceled");
        self.ask("get-subscription", &path, None).await.expect(200);
        self.ask("delete-scope", "/v1/scopes/email", None).await.expect_problem(409, "scope_in_use");
        self.ask("delete-subscription", &path, None).await;
        self.ask("restore-subscription", &format!("{path}/restore"), None).await.expect(200);
        self.ask("delete-subscription", &path, None).await;
        self.ask("get-subscription", &path, None).await.expect_problem(404, "not_found");
        let view = "/v1/entitlements?subjectType=user&subjectId=u";
        let view = self.ask("get-entitlements", view, None).await.expect(200);
        assert_eq!((&view["items"][0]["held"], &view["at"]), (&json!(true), &json!(timestamp(self.app.now()))));
        let explained = self.ask("explain", "/v1/explain", Some(&taken("explain"))).await.expect(200);
        assert_eq!((&explained["scopes"][0]["kept"], &explained["at"]), (&json!(true), &taken("explain")["at"]));
        self.ask("customize-access-token", ACCESS_TOKEN, Some(&taken("customize-access-token"))).await.expect(200);
        self.ask("customize-token", TOKEN, Some(&taken("customize-token"))).await.expect(200);
        let first = id_of(&self.ask("list-tokens", "/v1/tokens", None).await.expect(200)["items"][0]);
        let revoke = format!("/v1/tokens/{first}/revoke");
        assert_eq!(self.ask("revoke-token", &revoke, None).await.expect(200)["status"], "revoked");
        self.ask("revoke-token", &revoke, Some(&json!({}))).await.expect_problem(409, "already_revoked");
        let created = self.app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        Ids { subscription: id_of(&created), token: first }
    }

    /// All that is refused for what is asked, of every operation.
    async fn be_refused(&mut self, ids: &Ids) {
        for operation in self.operations() {
            let id = operation.id.as_str();
            let (path, body) = (target(&operation, ids), sample(id).unwrap_or_default().to_string());
            let body = if operation.request_schema().is_some() { body } else { String::new() };
            self.send(&operation, &path, &[media(&operation)], body.clone()).await.expect_problem(401, "unauthorized");
            if operation.is_hook() {
                self.ask_with(id, &path, &[media(&operation)], "{".to_owned())
                    .await
                    .expect_problem(400, "invalid_json");
            } else {
                let path = format!("{path}{}nonsense=1", if path.contains('?') { '&' } else { '?' });
                let refused = self.ask_with(id, &path, &[media(&operation)], body.clone()).await;
                assert_eq!((refused.status.as_u16(), refused.pointers()), (400, vec!["?nonsense".to_owned()]), "{id}");
            }
            if operation.path.contains('{') {
                let absent = operation.path.replace("{name}", "absent").replace("{id}", NO_ID);
                let may_be_empty = !body.is_empty() && id != "renew-subscription";
                let body = if may_be_empty { "{}".to_owned() } else { body.clone() };
                self.ask_with(id, &absent, &[media(&operation)], body).await.expect_problem(404, "not_found");
            }
            for parameter in operation.parameters("header") {
                match parameter["name"].as_str() {
                    Some("If-Match") => {
                        let refused =
                            self.ask_with(id, &path, &[media(&operation), ("if-match", "\"99\"")], body.clone()).await;
                        refused.expect_problem(412, "version_mismatch");
                    }
                    Some("Idempotency-Key") => {
                        let (wrong, spent) = (("idempotency-key", "a b"), ("idempotency-key", "spent"));
                        let refused = self.ask_with(id, &path, &[media(&operation), wrong], body.clone()).await;
                        refused.expect_problem(400, "invalid_request");
                        let refused = self.ask_with(id, &path, &[media(&operation), spent], body.clone()).await;
                        refused.expect_problem(422, "idempotency_key_reused");
                    }
                    other => panic!("{id}: the header {other:?} is without a test"),
                }
            }
            if operation.request_schema().is_some() {
                let text = ("content-type", "text/plain");
                self.ask_with(id, &path, &[text], "{}".to_owned()).await.expect_problem(415, "unsupported_media_type");
                let large = " ".repeat(1024 * 1024 + 1);
                self.ask_with(id, &path, &[media(&operation)], large).await.expect_problem(413, "body_too_large");
            }
        }
        let subscription = format!("/v1/subscriptions/{}", ids.subscription);
        for (id, path, body) in [
            ("create-scope", "/v1/scopes", json!({"name": "a b"})),
            ("patch-scope", "/v1/scopes/email", json!({"name": "other"})),
            (
                "create-subscription",
                "/v1/subscriptions",
                json!({"subject": {"type": "user", "id": ""}, "scopes": ["email"], "validUntil": null}),
            ),
            (
                "put-subscription",
                "/v1/subscriptions/by-external-id?source=billing&externalId=b",
                json!({"subject": {"type": "user", "id": "u"}, "scopes": ["unknown"], "validUntil": null}),
            ),
            ("patch-subscription", &*subscription, json!({"scopes": ["unknown"]})),
            ("cancel-subscription", &format!("{subscription}/cancel"), json!({"at": "2026-01-01T00:00:00Z"})),
            ("pause-subscription", &format!("{subscription}/pause"), json!({"from": "2026-01-01T00:00:00Z"})),
            ("renew-subscription", &format!("{subscription}/renew"), json!({"duration": "P0M"})),
            ("explain", "/v1/explain", json!({"request": {"client": {"id": "c"}, "scopes": []}, "at": "now"})),
            ("create-token", "/v1/tokens", json!({"name": "a b", "role": "reader", "expiresAt": null})),
        ] {
            assert_eq!(self.ask(id, path, Some(&body)).await.status, 422, "{id}");
        }
        for (item, status) in [
            (json!({"id": NO_ID, "delete": {}}), 404),
            (json!({"id": ids.subscription, "version": 99, "delete": {}}), 412),
        ] {
            let batch = json!({"atomic": true, "items": [item]});
            let refused = self.ask("write-subscriptions", "/v1/subscriptions/batch", Some(&batch)).await;
            assert_eq!(refused.status, status);
        }
    }
}

on_both! {
    async fn every_answer_is_one_that_is_described(database) {
        let app = database.app_with(Options { policy: with_claims(), ..Options::default() }).await;
        let mut walk = Walk::new(&app);
        let ids = walk.succeed().await;
        walk.be_refused(&ids).await;
        let strict =
            database.app_with(Options { require_if_match: true, policy: with_claims(), ..Options::default() }).await;
        walk.app = &strict;
        let batch = json!({"atomic": true, "items": [{"id": ids.subscription, "delete": {}}]});
        let refused = walk.ask("write-subscriptions", "/v1/subscriptions/batch", Some(&batch)).await;
        refused.expect_problem(428, "if_match_required");
        for operation in walk.operations() {
            let takes_version = operation.parameters("header").any(|parameter| parameter["name"] == "If-Match");
            // What a source puts has a version of its own.
            if !takes_version || operation.id == "put-subscription" {
                continue;
            }
            let body = sample(&operation.id).map_or_else(String::new, |body| body.to_string());
            let refused = walk.ask_with(&operation.id, &target(&operation, &ids), &[JSON], body).await;
            refused.expect_problem(428, "if_match_required");
        }
        let wary = database.app_with(Options { allowance: Allowance { burst: 0, ..Allowance::default() }, ..Options::default() }).await;
        walk.app = &wary;
        for operation in walk.operations() {
            let wrong = if operation.is_hook() { "Basic aG9vazp3cm9uZw==" } else { "Bearer wrong" };
            let path = target(&operation, &ids);
            let refused = walk.send(&operation, &path, &[JSON, ("authorization", wrong)], String::new()).await;
            refused.expect_problem(429, "too_many_failures");
        }
        walk.app = &strict;
        strict.database.close().await;
        for operation in walk.operations() {
            let body = match operation.id.as_str() {
                "import-subscriptions" => line("7").to_string(),
                id => sample(id).map_or_else(String::new, |body| body.to_string()),
            };
            let headers = [media(&operation), ("if-match", "*")];
            let refused = walk.ask_with(&operation.id, &target(&operation, &ids), &headers, body).await;
            refused.expect_problem(503, "unavailable");
        }
        walk.finish();
    }

    async fn no_operation_answers_without_its_own_credentials(database) {
        let app = database.app().await;
        let ids = furnish(&app).await;
        for operation in Document::all().iter().flat_map(Document::operations) {
            let other = if operation.is_hook() { ADMIN_CREDENTIALS } else { HOOK_CREDENTIALS };
            let body = sample(&operation.id).unwrap_or_default().to_string();
            for headers in [&[JSON][..], &[JSON, other], &[JSON, ("authorization", "")], &[JSON, other, credentials(&operation)]] {
                let answer = app.send(&operation.method, &target(&operation, &ids), headers, body.clone()).await;
                answer.expect_problem(401, "unauthorized");
                assert!(answer.header("www-authenticate").is_some(), "{}", operation.id);
            }
        }
        assert_eq!(app.call("GET", &format!("/v1/subscriptions/{}", ids.subscription)).await.expect(200)["version"], 1);
    }

    async fn a_body_is_taken_exactly_when_its_schema_describes_it(database) {
        let app = database.app_with(Options { policy: with_claims(), ..Options::default() }).await;
        let ids = furnish(&app).await;
        let mut counts = [0, 0];
        for document in Document::all() {
            for operation in document.operations() {
                let (Some(schema), samples) = (operation.request_schema(), samples(&operation.id)) else { continue };
                assert!(!samples.is_empty(), "{} has no sample", operation.id);
                let described: Vec<_> = members(&document.schema(schema)["properties"]).map(|(name, _)| name).collect();
                let has = |name: &&String| samples.iter().any(|sample| sample.get(name.as_str()).is_some());
                assert!(described.iter().all(has), "{}: {described:?}", operation.id);
                for body in samples.iter().flat_map(variants).chain(samples.clone()) {
                    let violations = document.violations(schema, &body);
                    let headers = [JSON, credentials(&operation)];
                    let answer = app.send(&operation.method, &target(&operation, &ids), &headers, body.to_string()).await;
                    let refused = matches!(answer.status.as_u16(), 400 | 422);
                    let (id, text) = (&operation.id, answer.text());
                    let is_described = violations.is_empty() && go_together(id, &body);
                    assert_eq!(refused, !is_described, "{id} {body}: {violations:?}, but\n{text}");
                    assert!(refused || answer.status.is_success() || answer.status == 409, "{id} {body}: {text}");
                    counts[usize::from(refused)] += 1;
                }
            }
        }
        assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    }

    async fn a_query_is_taken_exactly_when_its_parameters_are_described(database) {
        let app = database.app().await;
        let ids = furnish(&app).await;
        for operation in Document::of(Contract::Management).operations() {
            let sample = sample_query(&operation);
            if sample.is_empty() || operation.method != "GET" {
                continue;
            }
            let status = async |query: &[(&str, &str)]| {
                let answer = app.call(&operation.method, &with_query(&operation.path.replace("{id}", &ids.subscription), query)).await;
                assert!(matches!(answer.status.as_u16(), 200 | 400 | 404), "{query:?}: {}", answer.text());
                answer.status != 400
            };
            assert!(status(&sample).await, "{}", operation.id);
            for (index, (name, value)) in sample.iter().enumerate() {
                let parameter = operation.parameters("query").find(|parameter| parameter["name"] == *name).expect("it");
                let mut query = sample.clone();
                query.push((name, value));
                assert!(!status(&query).await, "{name} twice");
                query.pop();
                query.remove(index);
                // The two that name a subject go together, which a schema cannot say.
                let required = parameter["required"] == true || name.starts_with("subject");
                assert_eq!(status(&query).await, !required, "without {name}");
                for value in ["", "0", "1", "200", "201", "x", "user", "client", "active", "Active", "2026-01-01T00:00:00Z", "a%20b"] {
                    let decoded = value.replace("%20", " ");
                    let parsed = match parameter["schema"]["type"].as_str() {
                        Some("boolean") => decoded.parse::<bool>().map_or_else(|_| json!(decoded), |word| json!(word)),
                        Some("integer") => decoded.parse::<i64>().map_or_else(|_| json!(decoded), |number| json!(number)),
                        _ => json!(decoded),
                    };
                    let violations = Document::of(Contract::Management).violations(&parameter["schema"], &parsed);
                    let mut query = sample.clone();
                    query[index].1 = value;
                    assert_eq!(status(&query).await, violations.is_empty(), "{name}={value}: {violations:?}");
                }
            }
        }
    }

    async fn a_method_that_is_not_described_is_answered_with_those_that_are(database) {
        let app = database.app().await;
        let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let ids = Ids { subscription: NO_ID.to_owned(), token: NO_ID.to_owned() };
        for operation in Document::all().iter().flat_map(Document::operations) {
            let methods = methods.entry(target(&operation, &ids)).or_default();
            if operation.method == "GET" {
                methods.insert("HEAD".to_owned());
            }
            methods.insert(operation.method);
        }
        for (path, methods) in methods {
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
                if methods.contains(method) {
                    continue;
                }
                let answer = app.send(method, &path, &[], "").await;
                answer.expect_problem(405, "method_not_allowed");
                let allowed: BTreeSet<_> = answer.header("allow").expect("Allow").split(", ").map(str::to_owned).collect();
                assert_eq!(allowed, methods, "{path}");
            }
        }
    }

    async fn all_that_access_may_send_is_described_and_answered(database) {
        let app = database.app().await;
        app.register("email").await;
        let document = Document::of(Contract::Hooks);
        let mut count = 0;
        for (operation, path) in [("customize-access-token", ACCESS_TOKEN), ("customize-token", TOKEN)] {
            let operation = document.operation(operation);
            let request = operation.request_schema().expect("a request");
            let response = &operation.described["responses"]["200"]["content"]["application/json"]["schema"];
            for body in access_requests() {
                assert_eq!(document.violations(request, &body), [""; 0], "{body}");
                let answer = app.ask(path, &body).await.expect(200);
                assert_eq!(document.violations(response, &answer), [""; 0], "{answer}");
                assert!(!has_null(&answer), "{answer}");
                let none = elements(&body["scopes"]).is_empty();
                let (kept, removed) = if none { (json!([]), json!([])) } else { (json!(["openid"]), json!(["email"])) };
                let expected = match path {
                    ACCESS_TOKEN => json!({"removeScopes": removed, "additionalClaims": {}}),
                    _ => json!({"reducedScopes": kept}),
                };
                assert_eq!(answer, expected, "{body}");
                count += 1;
            }
        }
        assert_eq!(count, 2 * 4 * 3 * 4 * 4 * 2 * 2);
    }

    async fn the_files_and_pages_are_served_to_all_and_need_no_other_host(database) {
        let app = database.app().await;
        for (contract, page) in [(Contract::Hooks, "/docs/hooks"), (Contract::Management, "/docs")] {
            let served = app.send("GET", &format!("/openapi/{}.yaml", contract.as_str()), &[], "").await;
            assert_eq!((served.status.as_u16(), served.header("content-type")), (200, Some("application/yaml; charset=utf-8")));
            assert!(served.text() == contract.yaml(), "{}", contract.as_str());
            let page = app.send("GET", page, &[], "").await;
            assert_eq!((page.status.as_u16(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
            check_page(&page.text(), &Document::of(contract));
        }
    }
}

/// Looks at a page as a browser does: what it would fetch has to be in the page itself.
fn check_page(page: &str, document: &Document) {
    for operation in document.operations() {
        assert!(page.contains(&format!("\"operationId\":\"{}\"", operation.id)), "{}", operation.id);
    }
    let (mut scripts, mut styles, mut rest) = (0, 0, page);
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, after) = after.split_once('>').expect("the end of a tag");
        rest = after;
        for attribute in ["src", "href", "srcset", "data", "action", "poster", "background", "style"] {
            assert!(!tag.to_ascii_lowercase().contains(&format!(" {attribute}=")), "<{tag}>");
        }
        let name = tag.split_ascii_whitespace().next().unwrap_or_default();
        if !["script", "style"].contains(&name) {
            continue;
        }
        let (content, after) = after.split_once(&format!("</{name}>")).expect("its end");
        rest = after;
        if name == "style" {
            styles += 1;
            assert!(!content.contains("@import"));
            for (_, url) in content.match_indices("url(").map(|(at, _)| content[at + 4..].split_at(0)) {
                let url = url.trim_start_matches(['"', '\'']);
                assert!(url.starts_with("data:") || url.starts_with('#'), "{}", &url[..40.min(url.len())]);
            }
        } else {
            scripts += 1;
            // The one picture that the library would fetch from elsewhere is the validator's badge: nothing asks for it.
            for call in [
                "getComponent(\"onlineValidatorBadge\"",
                "getComponent(\"OnlineValidatorBadge\"",
                "fetch(\"http",
                "importScripts(",
            ] {
                assert!(!content.contains(call), "{call}");
            }
        }
    }
    assert_eq!((scripts, styles), (2, 1), "the page is read as a browser reads it");
}
