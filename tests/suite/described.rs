//! The contracts as the tests read them: their operations, and whether a value fits a schema.
//!
//! The validator knows the part of OpenAPI 3.0.3 that the documents use, and no more: a keyword that it does not know
//! is an error, so it cannot pass over a promise in silence.

use std::fmt::Write as _;

use chrono::DateTime;
use serde_json::{Map, Value};
use tollgate::http::contract::Contract;
use uuid::Uuid;

/// What a schema may say beside what the validator checks.
const ANNOTATIONS: [&str; 5] = ["title", "description", "default", "example", "deprecated"];
/// Keywords that the validator checks.
const KEYWORDS: [&str; 20] = [
    "$ref",
    "type",
    "nullable",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "items",
    "minItems",
    "maxItems",
    "uniqueItems",
    "properties",
    "required",
    "additionalProperties",
    "allOf",
    "anyOf",
    "not",
];
/// The patterns in use: a scope token of RFC 6749, the name of a token or a source, what a database can keep, and a key of
/// a request, which is matched by the tests of keys.
const SCOPE_TOKEN: &str = r"^[\x21\x23-\x5B\x5D-\x7E]+$";
const TOKEN_NAME: &str = "^[A-Za-z0-9._-]+$";
const STORABLE: &str = r"^[^\x00]*$";
const REQUEST_KEY: &str = "^[!-~]+$";

/// A contract, parsed.
pub struct Document {
    /// Which one.
    pub contract: Contract,
    /// All of it.
    pub root: Value,
}

/// An operation of a contract.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// Its method, in capitals.
    pub method: String,
    /// Its path, with parameters in braces.
    pub path: String,
    /// Its description.
    pub described: Value,
}

/// A text in YAML (or JSON, which is YAML), in which no mapping may hold a key twice.
pub fn parse_strictly(text: &str) -> Result<Value, String> {
    let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    serde_json::to_value(value).map_err(|error| error.to_string())
}

impl Document {
    /// The document that is served.
    pub fn of(contract: Contract) -> Self {
        Self { contract, root: parse_strictly(&contract.yaml()).expect("a strict document") }
    }

    /// Both.
    pub fn all() -> [Self; 2] {
        Contract::ALL.map(Self::of)
    }

    /// The operations, in the order of the document.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (path, item) in members(&self.root["paths"]) {
            for (method, described) in members(item) {
                operations.push(Operation {
                    id: described["operationId"].as_str().unwrap_or_default().to_owned(),
                    method: method.to_uppercase(),
                    path: path.clone(),
                    described: described.clone(),
                });
            }
        }
        operations
    }

    /// The operation of an id.
    pub fn operation(&self, id: &str) -> Operation {
        self.operations().into_iter().find(|operation| operation.id == id).unwrap_or_else(|| panic!("no {id}"))
    }

    /// What a reference names.
    pub fn resolve(&self, reference: &str) -> Option<&Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    /// Where a value does not fit a schema; empty when it does.
    pub fn violations(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.check(schema, value, "#", &mut found);
        found
    }

    fn check(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            let referred = self.resolve(reference).unwrap_or_else(|| panic!("{reference} leads nowhere"));
            return self.check(referred, value, at, found);
        }
        for part in elements(&schema["allOf"]) {
            self.check(part, value, at, found);
        }
        let fits = |part: &Value| self.violations(part, value).is_empty();
        if schema.get("anyOf").is_some_and(|parts| !elements(parts).iter().any(fits)) {
            found.push(format!("{at}: fits no part"));
        }
        if schema.get("not").is_some_and(fits) {
            found.push(format!("{at}: excluded"));
        }
        let Some(kind) = schema["type"].as_str() else {
            if let Value::Object(object) = value {
                self.check_object(schema, object, at, found);
            }
            return;
        };
        // OpenAPI 3.0.3: `nullable` adds null to the `type` beside it, and to nothing else.
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        let mut refuse = |reason: &str| found.push(format!("{at}: {reason}"));
        if !is_of_type(kind, value) {
            return refuse(&format!("not of type {kind}"));
        }
        if schema.get("enum").is_some_and(|list| !elements(list).contains(value)) {
            refuse("not in the list");
        }
        match value {
            Value::String(text) => check_text(schema, text, &mut refuse),
            Value::Number(number) => {
                let number = number.as_f64().expect("a number");
                if schema["minimum"].as_f64().is_some_and(|least| number < least)
                    || schema["maximum"].as_f64().is_some_and(|most| number > most)
                {
                    refuse("out of bounds");
                }
            }
            Value::Array(items) => {
                check_size(schema, "minItems", "maxItems", items.len(), &mut refuse);
                if schema["uniqueItems"] == true && (1..items.len()).any(|index| items[..index].contains(&items[index]))
                {
                    refuse("repeated");
                }
                for (index, item) in items.iter().enumerate() {
                    self.check(&schema["items"], item, &format!("{at}/{index}"), found);
                }
            }
            Value::Object(object) => self.check_object(schema, object, at, found),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn check_object(&self, schema: &Value, object: &Map<String, Value>, at: &str, found: &mut Vec<String>) {
        for name in elements(&schema["required"]).iter().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                found.push(format!("{at}/{name}: missing"));
            }
        }
        for (name, value) in object {
            match schema["properties"].get(name) {
                Some(schema) => self.check(schema, value, &format!("{at}/{name}"), found),
                None if schema["additionalProperties"] == false => found.push(format!("{at}/{name}: unknown")),
                None => {}
            }
        }
    }

    /// The schema behind references and a lone part with a description beside it.
    pub fn schema<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match (schema["$ref"].as_str(), schema["allOf"].get(0)) {
            (Some(reference), _) => self.schema(self.resolve(reference).expect("described")),
            (None, Some(part)) => self.schema(part),
            (None, None) => schema,
        }
    }
}

impl Operation {
    /// The schema of a JSON request, if it takes one.
    pub fn request_schema(&self) -> Option<&Value> {
        self.described.pointer("/requestBody/content/application~1json/schema")
    }

    /// Its parameters of a kind: `path`, `query` or `header`.
    pub fn parameters(&self, kind: &str) -> impl Iterator<Item = &Value> {
        elements(&self.described["parameters"]).iter().filter(move |parameter| parameter["in"] == kind)
    }

    /// The statuses that are described.
    pub fn statuses(&self) -> Vec<u16> {
        members(&self.described["responses"]).map(|(status, _)| status.parse().expect("a status")).collect()
    }

    /// Whether it belongs to the hooks.
    pub fn is_hook(&self) -> bool {
        self.id.starts_with("customize")
    }
}

/// What is wrong with a schema itself.
pub fn faults(schema: &Value) -> String {
    let mut found = String::new();
    let mut fault = |what: &str| writeln!(found, "{what}: {schema}").expect("written");
    for (keyword, _) in members(schema) {
        if !KEYWORDS.contains(&keyword.as_str()) && !ANNOTATIONS.contains(&keyword.as_str()) {
            fault(&format!("unknown keyword {keyword}"));
        }
    }
    if schema.get("nullable").is_some() && schema.get("type").is_none() {
        fault("nullable means nothing without a type");
    }
    if schema.get("nullable").is_some() && schema.get("allOf").is_some() {
        fault("nullable, and a part that is not");
    }
    if schema.get("allOf").is_some_and(|parts| elements(parts).len() != 1) {
        fault("a client needs one type, and finds several parts");
    }
    for (name, member) in members(&schema["properties"]) {
        if !["type", "$ref", "allOf"].iter().any(|keyword| member.get(keyword).is_some()) {
            fault(&format!("{name} is of no type"));
        }
    }
    if (schema["type"] == "array") != schema.get("items").is_some() {
        fault("items belong to an array");
    }
    let is_known =
        |pattern: &Value| [SCOPE_TOKEN, TOKEN_NAME, STORABLE, REQUEST_KEY].iter().any(|known| pattern == known);
    if schema.get("pattern").is_some_and(|pattern| !is_known(pattern)) {
        fault("unknown pattern");
    }
    let required = schema.get("required").map(elements);
    if required.is_some_and(|list| list.is_empty() || !list.iter().all(|name| is_described(schema, name))) {
        fault("required lists at least one member, each described");
    }
    for keyword in ["type", "format"] {
        let known = [
            "object",
            "array",
            "string",
            "integer",
            "boolean",
            "date-time",
            "duration",
            "uuid",
            "uint16",
            "int64",
            "uint64",
            "binary",
        ];
        if schema.get(keyword).is_some_and(|word| !known.contains(&word.as_str().unwrap_or_default())) {
            fault(&format!("unknown {keyword}"));
        }
    }
    if let Some(excluded) = schema.get("not") {
        found.push_str(&faults_of_excluded(schema, excluded));
    }
    let properties = members(&schema["properties"]).map(|(_, schema)| schema);
    for part in properties.chain(elements(&schema["allOf"])).chain(schema.get("items")) {
        found.push_str(&faults(part));
    }
    found
}

/// What is wrong with what a schema excludes: combinations of members that it describes.
fn faults_of_excluded(schema: &Value, excluded: &Value) -> String {
    let mut found = String::new();
    for (keyword, value) in members(excluded) {
        let known = match keyword.as_str() {
            "required" => !elements(value).is_empty() && elements(value).iter().all(|name| is_described(schema, name)),
            "properties" => members(value).all(|(name, part)| {
                is_described(schema, &name.as_str().into()) && faults(part).is_empty() && part.get("type").is_some()
            }),
            "anyOf" => !elements(value).is_empty(),
            "not" => true,
            _ => false,
        };
        if !known {
            writeln!(found, "{keyword} in what is excluded: {excluded}").expect("written");
        }
    }
    for part in elements(&excluded["anyOf"]).iter().chain(excluded.get("not")) {
        found.push_str(&faults_of_excluded(schema, part));
    }
    found
}

fn is_described(schema: &Value, name: &Value) -> bool {
    schema["properties"].get(name.as_str().unwrap_or_default()).is_some()
}

/// The members of an object; none when it is none.
pub fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// The elements of an array; none when it is none.
pub fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether null stands anywhere in a value.
pub fn has_null(value: &Value) -> bool {
    value.is_null() || elements(value).iter().any(has_null) || members(value).any(|(_, value)| has_null(value))
}

fn is_of_type(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("unknown type {other}"),
    }
}

fn check_text(schema: &Value, text: &str, refuse: &mut impl FnMut(&str)) {
    check_size(schema, "minLength", "maxLength", text.chars().count(), refuse);
    let is_scope_token = || text.bytes().all(|byte| (0x21..=0x7E).contains(&byte) && byte != b'"' && byte != b'\\');
    if schema["pattern"] == SCOPE_TOKEN && (text.is_empty() || !is_scope_token()) {
        refuse("not of the pattern");
    }
    let is_token_name = || text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if schema["pattern"] == TOKEN_NAME && (text.is_empty() || !is_token_name()) {
        refuse("not of the pattern");
    }
    if schema["pattern"] == STORABLE && text.contains('\0') {
        refuse("not of the pattern");
    }
    let is_of_format = match schema["format"].as_str() {
        Some("date-time") => DateTime::parse_from_rfc3339(text).is_ok(),
        Some("duration") => text.starts_with('P') && text.ends_with(|unit: char| unit.is_ascii_uppercase()),
        Some("uuid") => text.len() == 36 && Uuid::try_parse(text).is_ok(),
        _ => true,
    };
    if !is_of_format {
        refuse("not of the format");
    }
}

fn check_size(schema: &Value, least: &str, most: &str, size: usize, refuse: &mut impl FnMut(&str)) {
    let size = size as u64;
    if schema[least].as_u64().is_some_and(|least| size < least) || schema[most].as_u64().is_some_and(|most| size > most)
    {
        refuse("too short or too long");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_in_yaml_and_in_json() {
        assert!(parse_strictly("a: 1\nb: 2\n").is_ok());
        assert!(parse_strictly("a: 1\na: 2\n").is_err());
        assert!(parse_strictly(r#"{"x":{"a":1,"a":1}}"#).is_err());
    }

    #[test]
    fn the_validator_finds_what_does_not_fit() {
        let document =
            Document { contract: Contract::Hooks, root: json!({"A": {"type": "object", "required": ["x"]}}) };
        let check = |schema: Value, value: Value, fits: bool| {
            assert_eq!(document.violations(&schema, &value).is_empty(), fits, "{schema} {value}");
        };
        check(json!({"$ref": "#/A"}), json!({"x": 1}), true);
        check(json!({"$ref": "#/A"}), json!({}), false);
        check(json!({"allOf": [{"$ref": "#/A"}], "nullable": true}), json!(null), false);
        check(json!({"type": "string", "nullable": true, "minLength": 1}), json!(null), true);
        check(json!({"type": "string", "minLength": 1}), json!(null), false);
        check(json!({"type": "string", "minLength": 1}), json!(""), false);
        check(json!({"type": "string", "pattern": SCOPE_TOKEN}), json!("a b"), false);
        check(json!({"type": "string", "pattern": STORABLE}), json!("a\0b"), false);
        check(json!({"type": "string", "format": "date-time"}), json!("2026-01-01"), false);
        check(json!({"type": "string", "enum": ["a"]}), json!("b"), false);
        check(json!({"type": "integer", "maximum": 3}), json!(4), false);
        check(json!({"type": "array", "uniqueItems": true, "items": {}}), json!([1, 2, 1]), false);
        check(json!({"type": "array", "items": {"type": "string"}}), json!(["a", 1]), false);
        check(json!({"type": "object", "additionalProperties": false}), json!({"a": 1}), false);
        let either = json!({"not": {"anyOf": [{"required": ["a", "b"]}, {"not": {"anyOf": [{"required": ["a"]}]}}]}});
        check(either.clone(), json!({"a": 1}), true);
        check(either.clone(), json!({"a": 1, "b": 1}), false);
        check(either, json!({}), false);
        let truth = json!({"a": {"type": "boolean", "enum": [true]}});
        check(json!({"not": {"required": ["a"], "properties": truth}}), json!({"a": true}), false);
        check(json!({"not": {"required": ["a"], "properties": truth}}), json!({"a": false}), true);
    }

    #[test]
    fn a_schema_that_means_nothing_is_a_fault() {
        for schema in [
            json!({"oneOf": []}),
            json!({"nullable": true}),
            json!({"type": "object", "required": null}),
            json!({"type": "object", "required": ["x"]}),
            json!({"type": "array"}),
            json!({"type": "object", "not": {"required": ["x"]}}),
            json!({"type": "object", "not": {"anyOf": [{"required": ["x"]}]}}),
            json!({"type": "object", "not": {"type": "string"}}),
            json!({"properties": {"a": {"type": "string", "format": "float"}}}),
            json!({"properties": {"a": {"example": "b"}}}),
            json!({"allOf": [{"$ref": "#/A"}, {"description": "b"}]}),
        ] {
            assert!(!faults(&schema).is_empty(), "{schema}");
        }
    }
}
