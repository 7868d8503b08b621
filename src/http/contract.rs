//! The contracts: OpenAPI documents, generated from the code without a database.

use poem_openapi::OpenApiService;
use serde_yaml::Value;

use super::{
    batch::BatchApi, bulk::BulkApi, catalogue::CatalogueApi, entitlement::EntitlementApi, explain::ExplainApi,
    history::HistoryApi, hook::HookApi, router::MAX_KEY_LENGTH, subscription::SubscriptionApi, token::TokenApi,
};

/// The version of OpenAPI in which the documents are written; the library says 3.0.0, which allows no less.
const OPENAPI_VERSION: &str = "3.0.3";

/// Schemas of requests that refuse unknown members (`deny_unknown_fields`), which the library does not write down.
const CLOSED: [&str; 15] = [
    "NewScope",
    "ScopePatch",
    "NewSubscription",
    "SubscriptionState",
    "SubscriptionPatch",
    "Batch",
    "BatchItem",
    "Cancellation",
    "Pause",
    "Renewal",
    "Nothing",
    "Subject",
    "NewToken",
    "Revocation",
    "ExplanationRequest",
];

/// Members that may be null, by schema, and whether they must be there all the same: the library writes down neither.
const NULLABLE: [(&str, &str, bool); 14] = [
    ("HookRequest", "user", false),
    ("NewSubscription", "validUntil", true),
    ("SubscriptionState", "validUntil", true),
    ("Subscription", "validUntil", true),
    ("SubscriptionPatch", "validUntil", false),
    ("SubscriptionPatch", "graceUntil", false),
    ("SubscriptionPatch", "claims", false),
    ("Renewal", "validUntil", false),
    ("Renewal", "graceUntil", false),
    ("ScopePatch", "description", false),
    ("ScopePatch", "claims", false),
    ("NewToken", "expiresAt", true),
    ("Token", "expiresAt", true),
    ("IssuedToken", "expiresAt", true),
];

/// Operations that are a POST and take no key: one only reads, the other's lines have names by which they are done once.
pub(super) const KEYLESS_POSTS: [&str; 2] = ["explain", "import-subscriptions"];

/// Members whose example is not that of their type: together with the others of their schema they make a request that
/// is answered, for people who try it out and for programs that do.
const EXAMPLES: [(&str, &str, &str); 24] = [
    ("NewSubscription", "validUntil", "2099-01-31T12:00:00Z"),
    ("NewSubscription", "graceUntil", "2099-02-07T12:00:00Z"),
    ("NewSubscription", "pausedFrom", "2098-07-01T00:00:00Z"),
    ("NewSubscription", "pausedUntil", "2098-08-01T00:00:00Z"),
    ("NewSubscription", "canceledAt", "2098-12-31T12:00:00Z"),
    ("Subscription", "validUntil", "2099-01-31T12:00:00Z"),
    ("Subscription", "graceUntil", "2099-02-07T12:00:00Z"),
    ("Subscription", "pausedFrom", "2098-07-01T00:00:00Z"),
    ("Subscription", "pausedUntil", "2098-08-01T00:00:00Z"),
    ("Subscription", "canceledAt", "2098-12-31T12:00:00Z"),
    ("SubscriptionState", "validUntil", "2099-01-31T12:00:00Z"),
    ("SubscriptionState", "graceUntil", "2099-02-07T12:00:00Z"),
    ("SubscriptionState", "pausedFrom", "2098-07-01T00:00:00Z"),
    ("SubscriptionState", "pausedUntil", "2098-08-01T00:00:00Z"),
    ("SubscriptionState", "canceledAt", "2098-12-31T12:00:00Z"),
    ("SubscriptionPatch", "validUntil", "2099-01-31T12:00:00Z"),
    ("SubscriptionPatch", "graceUntil", "2099-02-07T12:00:00Z"),
    ("Cancellation", "at", "2098-12-31T12:00:00Z"),
    ("Pause", "from", "2098-07-01T00:00:00Z"),
    ("Pause", "until", "2098-08-01T00:00:00Z"),
    ("Renewal", "validUntil", "2199-01-31T12:00:00Z"),
    ("Renewal", "graceUntil", "2199-02-28T12:00:00Z"),
    ("NewToken", "expiresAt", "2099-01-31T12:00:00Z"),
    ("Token", "expiresAt", "2099-01-31T12:00:00Z"),
];

/// A contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// What Access calls.
    Hooks,
    /// What billing and support call.
    Management,
}

/// The operations of the management API.
pub type ManagementApi =
    (CatalogueApi, SubscriptionApi, BatchApi, BulkApi, HistoryApi, EntitlementApi, ExplainApi, TokenApi);

/// The hooks, as the library serves and describes them.
#[must_use]
pub fn hooks() -> OpenApiService<HookApi, ()> {
    let description = "The web hooks that OneWelcome Access calls just before it creates a grant or a token. \
        Members that are not listed here are ignored.";
    OpenApiService::new(HookApi, "Tollgate hooks", env!("CARGO_PKG_VERSION")).description(description)
}

/// The management API, as the library serves and describes it.
#[must_use]
pub fn management() -> OpenApiService<ManagementApi, ()> {
    let description = "The API by which billing and support manage the catalogue and the subscriptions. \
        Unknown members and parameters are refused. Times are RFC 3339, in any offset, and answered in UTC.";
    let apis = (CatalogueApi, SubscriptionApi, BatchApi, BulkApi, HistoryApi, EntitlementApi, ExplainApi, TokenApi);
    OpenApiService::new(apis, "Tollgate management", env!("CARGO_PKG_VERSION")).description(description)
}

impl Contract {
    /// Both contracts.
    pub const ALL: [Self; 2] = [Self::Hooks, Self::Management];

    /// The name of the contract, and of its file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Management => "management",
        }
    }

    /// The contract in YAML.
    #[must_use]
    pub fn yaml(self) -> String {
        let yaml = serde_yaml::to_string(&self.document()).unwrap_or_default();
        format!("# Written from the code by a test (`make openapi`); not to be edited.\n{yaml}")
    }

    /// The contract in JSON.
    #[must_use]
    pub fn json(self) -> String {
        serde_json::to_string(&self.document()).unwrap_or_default()
    }

    /// The contract as a page to browse, which needs nothing but itself.
    #[must_use]
    pub fn page(self) -> String {
        let (page, spec) = match self {
            Self::Hooks => (hooks().swagger_ui_html(), hooks().spec()),
            Self::Management => (management().swagger_ui_html(), management().spec()),
        };
        // `<` is escaped, or a description could end the script that the document stands in.
        page.replace(&spec, &self.json().replace('<', "\\u003c"))
    }

    /// The library's document, with what it leaves out.
    fn document(self) -> Value {
        let spec = match self {
            Self::Hooks => hooks().spec(),
            Self::Management => management().spec(),
        };
        // JSON is YAML, and YAML's mapping keeps the order of members, which reviewers of the file are glad of.
        let mut document: Value = serde_yaml::from_str(&spec).unwrap_or_default();
        document["openapi"] = OPENAPI_VERSION.into();
        let schemas = &mut document["components"]["schemas"];
        for name in CLOSED {
            if let Some(schema) = schemas.get_mut(name) {
                schema["additionalProperties"] = false.into();
            }
        }
        for (name, member, required) in NULLABLE {
            make_nullable(schemas, name, member, required);
        }
        for (name, member, example) in EXAMPLES {
            if let Some(schema) = schemas.get_mut(name) {
                schema["properties"][member]["example"] = example.into();
            }
        }
        for (name, excluded) in excluded() {
            if let Some(schema) = schemas.get_mut(name) {
                schema["not"] = excluded;
            }
        }
        if self == Self::Management {
            take_keys(&mut document["paths"]);
        }
        leave_lone_references(&mut document);
        document
    }
}

/// Writes down that every POST that writes takes a key: the router reads it, for all of them in one place.
fn take_keys(paths: &mut Value) {
    let description = "Makes the request be done once: with the same key and the same request, the answer of the first \
        one is given again for 24 hours. With another request it is a 422, and while the first one is under way a 409 with \
        `Retry-After`.";
    let Some(paths) = paths.as_mapping_mut() else { return };
    for (_, path) in paths {
        let Some(operation) = path.get_mut("post") else { continue };
        if operation["operationId"].as_str().is_some_and(|id| KEYLESS_POSTS.contains(&id)) {
            continue;
        }
        let parameter = serde_json::json!({
            "name": "Idempotency-Key", "in": "header", "description": description, "required": false,
            "schema": { "type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[!-~]+$" },
        });
        let Ok(parameter) = serde_yaml::to_value(parameter) else { continue };
        match operation.get_mut("parameters").and_then(Value::as_sequence_mut) {
            Some(parameters) => parameters.push(parameter),
            None => operation["parameters"] = Value::Sequence(vec![parameter]),
        }
    }
}

/// Members of requests that do not go together, by schema. It is said with `not`, because programs that make clients
/// take `oneOf` beside `properties` for several types.
fn excluded() -> [(&'static str, Value); 4] {
    let with = |members: &[&str]| mapping([("required", members.iter().copied().map(Value::from).collect())]);
    let any_of = |parts: Vec<Value>| mapping([("anyOf", parts.into())]);
    let at_end = mapping([("atEnd", mapping([("type", "boolean".into()), ("enum", vec![Value::from(true)].into())]))]);
    let renewed = any_of(vec![with(&["validUntil"]), with(&["duration"])]);
    let without =
        |member: &str, other: &str| mapping([("required", vec![Value::from(member)].into()), ("not", with(&[other]))]);
    let half_paused = || without("pausedUntil", "pausedFrom");
    let half_known = vec![
        without("source", "externalId"),
        without("externalId", "source"),
        without("sourceVersion", "externalId"),
        half_paused(),
    ];
    [
        ("NewSubscription", any_of(half_known)),
        ("SubscriptionState", half_paused()),
        (
            "Cancellation",
            mapping([("required", vec![Value::from("at"), "atEnd".into()].into()), ("properties", at_end)]),
        ),
        (
            "Renewal",
            any_of(vec![with(&["validUntil", "duration"]), with(&["validUntil", "from"]), mapping([("not", renewed)])]),
        ),
    ]
}

fn mapping<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Mapping(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

/// Takes from each `allOf` the part that the library adds to a reference to repeat what stands beside the `allOf`: with
/// it, programs that make clients find no single type there.
fn leave_lone_references(value: &mut Value) {
    match value {
        Value::Mapping(mapping) => {
            let beside = mapping.clone();
            if let Some(parts) = mapping.get_mut("allOf").and_then(Value::as_sequence_mut) {
                parts.retain(|part| {
                    !part
                        .as_mapping()
                        .is_some_and(|part| part.iter().all(|(key, value)| beside.get(key) == Some(value)))
                });
            }
            mapping.values_mut().for_each(leave_lone_references);
        }
        Value::Sequence(parts) => parts.iter_mut().for_each(leave_lone_references),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Tagged(_) => {}
    }
}

fn make_nullable(schemas: &mut Value, name: &str, member: &str, required: bool) {
    let Some(schema) = schemas.get(name) else { return };
    let property = &schema["properties"][member];
    // In OpenAPI 3.0 what stands beside a reference is ignored, and no part of an `allOf` can be made nullable from
    // outside: a referred schema is copied.
    let reference = property["$ref"].as_str().or_else(|| property["allOf"][0]["$ref"].as_str());
    let mut nullable = match reference.and_then(|path| path.rsplit('/').next()) {
        Some(referred) => schemas[referred].clone(),
        None => property.clone(),
    };
    if let Some(description) = property.get("description") {
        nullable["description"] = description.clone();
    }
    nullable["nullable"] = true.into();
    let schema = &mut schemas[name];
    schema["properties"][member] = nullable;
    let Some(list) = schema.get_mut("required").and_then(Value::as_sequence_mut) else { return };
    if required && !list.contains(&member.into()) {
        list.push(member.into());
    }
}
