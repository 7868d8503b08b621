//! A billing system whose network, senders and receivers fail all the time, and what is there in the end: what it
//! meant, and nothing else.
//!
//! What it means, and what it sends in which order, comes from one seed. What arrives, and when, is up to the machine:
//! messages come again, late, in batches, from many senders at once, to two replicas, one of which is a process that is
//! killed in the middle. Its senders know nothing but the rule for every sender: the same message again until there is
//! an answer.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Months, TimeDelta, Timelike as _, Utc};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tollgate::service::{Clock as _, SystemClock};

use crate::{
    process::{CREDENTIALS, Folder, Server},
    proxy::Proxy,
    support::{
        ACCESS_TOKEN, ADMIN_CREDENTIALS, App, Backend, HOOK_CREDENTIALS, JSON, Options, encoded, eventually, instant,
        measured, on_both, timestamp,
    },
};

/// What everything that the billing system does comes from.
const SEED: u64 = 20_260_615;
/// Customers whose subscriptions have ids of the billing system's, and versions.
const KNOWN: usize = 1_700;
/// Customers whose subscriptions it knows by the answer to their creation alone.
const NAMELESS: usize = 150;
/// Groups of such customers who are written to together, and how many are in each.
const CLUBS: usize = 10;
const CLUB: usize = 15;
/// Those who send at once.
const SENDERS: u64 = 10;
/// How far a message may be overtaken: by so many of those that were sent after it.
const DISORDER: u64 = 600;
/// For what only has to come at all, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a message is sent again and again.
const LONGEST_DELIVERY: Duration = Duration::from_mins(3);

const SOURCE: &str = "billing";
const SCOPES: [&str; 5] = ["archive", "email", "films", "music", "sports"];
const BATCH: &str = "/v1/subscriptions/batch";

/// Numbers in an order that is none, and always the same (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn between(&mut self, first: i64, last: i64) -> i64 {
        let span = u64::try_from(last - first + 1).expect("a span");
        first + i64::try_from(self.below(span)).expect("small")
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length).expect("small"))).expect("small")
    }
}

/// What a subscription is to be, by the names of the API, without what the service says of its own.
type State = Map<String, Value>;

fn object(value: Value) -> State {
    let Value::Object(object) = value else { panic!("no object: {value}") };
    object
}

fn at(state: &State, name: &str) -> Option<DateTime<Utc>> {
    state.get(name).and_then(Value::as_str).map(instant)
}

/// What the status of a subscription has to be at an instant: the rules over again, from the words of their description.
fn status(state: &State, now: DateTime<Utc>) -> &'static str {
    let from = at(state, "validFrom").expect("a start");
    let (until, grace_until) = (at(state, "validUntil"), at(state, "graceUntil"));
    let has_come = |instant: Option<DateTime<Utc>>| instant.is_some_and(|instant| instant <= now);
    if has_come(at(state, "canceledAt")) {
        "canceled"
    } else if now < from {
        "scheduled"
    } else if has_come(grace_until.or(until)) {
        "expired"
    } else if has_come(at(state, "pausedFrom")) && !has_come(at(state, "pausedUntil")) {
        "paused"
    } else if has_come(until) {
        "grace"
    } else {
        "active"
    }
}

fn subject(state: &State) -> &str {
    state["subject"]["id"].as_str().expect("an id")
}

/// What tells a subscription from all others: the id of its source, else who holds it, for they hold no other.
fn name(state: &State) -> String {
    match state.get("externalId").and_then(Value::as_str) {
        Some(id) => id.to_owned(),
        None => subject(state).to_owned(),
    }
}

/// What a message comes to, unless it is done.
type Refusal = Option<(u16, &'static str)>;

/// A request, which may be sent as often as one likes.
#[derive(Clone)]
struct Message {
    method: &'static str,
    path: String,
    key: Option<String>,
    body: String,
    refusal: Refusal,
}

impl Message {
    fn post(path: impl Into<String>, key: impl Into<String>, body: &Value) -> Self {
        let (path, body) = (path.into(), body.to_string());
        Self { method: "POST", path, key: Some(key.into()), body, refusal: None }
    }

    /// What the billing system says of a subscription that it has an id for.
    fn put(state: &State) -> Self {
        let mut body = state.clone();
        let id = body.remove("externalId").expect("an id");
        body.remove("source");
        let id = encoded(id.as_str().expect("text"));
        let path = format!("/v1/subscriptions/by-external-id?source={SOURCE}&externalId={id}");
        Self { method: "PUT", path, key: None, body: Value::Object(body).to_string(), refusal: None }
    }
}

/// What one sender does before it takes up the next thing.
enum Parcel {
    /// To send one state.
    Put(State),
    /// To send several, with what must not be done among them if it is `poisoned`.
    Batch { states: Vec<State>, is_atomic: bool, is_poisoned: bool, key: Option<String> },
    /// To create a subscription and do one thing after another to it.
    Script(Script),
    /// To create subscriptions together and renew them together.
    Club { members: Vec<State>, renewals: Vec<bool>, key: String },
}

/// A subscription by its creation, and the commands that follow.
struct Script {
    created: State,
    commands: Vec<(&'static str, Value, Refusal)>,
}

/// What is to be, and what is to be sent.
struct Plan {
    /// By name.
    intended: BTreeMap<String, State>,
    parcels: VecDeque<Parcel>,
}

impl Plan {
    fn new(base: DateTime<Utc>) -> Self {
        let mut dice = Dice(SEED);
        let (mut intended, mut sent) = (BTreeMap::new(), Vec::new());
        let mut intend = |state: &State| {
            assert!(intended.insert(name(state), state.clone()).is_none(), "named twice");
        };
        for (place, number) in (0..).zip(0..KNOWN) {
            let states = known(number, base, &mut dice);
            intend(states.last().expect("a state"));
            // Customers come one after the other, and what happens to each goes on for a while.
            for (step, state) in (0..).zip(&states) {
                for _ in 0..=u64::from(dice.chance(25)) + u64::from(dice.chance(8)) {
                    sent.push((place * 4 + step * 200 + dice.below(DISORDER * 4), state.clone()));
                }
            }
        }
        sent.sort_by_key(|(order, _)| *order);
        let mut parcels = Vec::new();
        let mut sent = sent.into_iter().map(|(_, state)| state);
        while let Some(state) = sent.next() {
            // Fewer than one in seven, but they hold most of it.
            if !dice.chance(14) {
                parcels.push(Parcel::Put(state));
                continue;
            }
            let more = dice.index(40);
            let mut states: Vec<_> = std::iter::once(state).chain(sent.by_ref().take(more)).collect();
            // Batches that name the same subscriptions in different orders would deadlock.
            states.sort_by_key(name);
            let key = dice.chance(50).then(|| format!("batch-{}", parcels.len()));
            parcels.push(Parcel::Batch { states, is_atomic: dice.chance(50), is_poisoned: dice.chance(20), key });
        }
        for number in 0..NAMELESS {
            let (script, last) = script(number, base, &mut dice);
            intend(&last);
            parcels.insert(dice.index(parcels.len()), Parcel::Script(script));
        }
        for club in 0..CLUBS {
            let members: Vec<_> = (0..CLUB).map(|number| nameless(&format!("club-{club}-{number}"), base)).collect();
            let renewals: Vec<_> = (0..=dice.below(3)).map(|_| dice.chance(50)).collect();
            for member in &members {
                let mut member = member.clone();
                for _ in &renewals {
                    renew(&mut member);
                }
                intend(&member);
            }
            let key = format!("club-{club}");
            parcels.insert(dice.index(parcels.len()), Parcel::Club { members, renewals, key });
        }
        Self { intended, parcels: parcels.into() }
    }
}

/// What the billing system says of one subscription, from its first version to its last.
fn known(number: usize, base: DateTime<Utc>, dice: &mut Dice) -> Vec<State> {
    let day = |days: i64| Value::from(timestamp(base + TimeDelta::days(days)));
    let scopes = |dice: &mut Dice| {
        let chosen: Vec<_> = SCOPES.into_iter().filter(|_| dice.chance(40)).collect();
        json!(if chosen.is_empty() { vec![SCOPES[dice.index(SCOPES.len())]] } else { chosen })
    };
    // Some hold two, so that what one takes away the other may still give.
    let holder = if number % 10 == 9 { number - 1 } else { number };
    let (from, mut until) = (dice.between(-60, -1), dice.chance(85).then(|| dice.between(0, 60)));
    let mut version = dice.between(0, 3);
    let mut state = object(json!({
        "source": SOURCE, "externalId": format!("sub/{number} é"), "sourceVersion": version,
        "subject": {"type": "user", "id": format!("u{holder}")}, "scopes": scopes(dice),
        "validFrom": day(from), "validUntil": until.map_or(Value::Null, day),
    }));
    let mut states = vec![state.clone()];
    for _ in 0..dice.below(6) {
        match dice.below(8) {
            0 | 1 => drop(state.insert("scopes".to_owned(), scopes(dice))),
            // Renewed: what there was of a grace is over.
            2 | 3 => {
                until = until.map(|until| until + 30);
                state.insert("validUntil".to_owned(), until.map_or(Value::Null, day));
                state.remove("graceUntil");
            }
            4 => {
                if let Some(until) = until {
                    state.insert("graceUntil".to_owned(), day(until + dice.between(1, 14)));
                }
            }
            5 => {
                let from = dice.between(-8, 8);
                state.insert("pausedFrom".to_owned(), day(from));
                state.remove("pausedUntil");
                if dice.chance(50) {
                    state.insert("pausedUntil".to_owned(), day(from + dice.between(1, 8)));
                }
            }
            6 => {
                // What was paused or canceled goes on.
                for name in ["pausedFrom", "pausedUntil", "canceledAt"] {
                    state.remove(name);
                }
            }
            _ if dice.chance(50) => drop(state.insert("canceledAt".to_owned(), day(dice.between(-5, 20)))),
            _ => {
                // Ended, and no grace.
                until = Some(dice.between(from + 1, 0));
                state.insert("validUntil".to_owned(), until.map_or(Value::Null, day));
                state.remove("graceUntil");
            }
        }
        version += 1 + dice.between(0, 2);
        state.insert("sourceVersion".to_owned(), version.into());
        states.push(state.clone());
    }
    states
}

/// A subscription without an id of the billing system's. Its end is a day that every month has.
fn nameless(user: &str, base: DateTime<Utc>) -> State {
    object(json!({
        "subject": {"type": "user", "id": user}, "scopes": ["email", "music"],
        "validFrom": timestamp(base - TimeDelta::days(3)), "validUntil": timestamp(first_of_month_after(base)),
    }))
}

/// Some first day of a month more than a month away.
fn first_of_month_after(base: DateTime<Utc>) -> DateTime<Utc> {
    let date = base.date_naive() + Months::new(2);
    let first = chrono::Datelike::with_day(&date, 1).expect("every month has one");
    first.and_hms_opt(6, 0, 0).expect("an instant").and_utc()
}

fn renew(state: &mut State) {
    let until = at(state, "validUntil").expect("an end") + Months::new(1);
    state.insert("validUntil".to_owned(), timestamp(until).into());
}

/// One whose history is made of commands; and what it is after them. A command that is refused is the last one: a copy
/// of it that is still under way cannot come to anything else then.
fn script(number: usize, base: DateTime<Utc>, dice: &mut Dice) -> (Script, State) {
    let created = nameless(&format!("nameless-{number}"), base);
    let mut state = created.clone();
    let day = |days: i64| Value::from(timestamp(base + TimeDelta::days(days)));
    let mut commands = Vec::new();
    for _ in 0..=dice.below(5) {
        let (is_paused, is_canceled) = (state.contains_key("pausedFrom"), state.contains_key("canceledAt"));
        let (verb, body, refusal) = match dice.below(8) {
            0..4 => ("renew", json!({"duration": "P1M"}), is_canceled.then_some((409, "canceled"))),
            4 => ("pause", json!({"from": day(5), "until": day(9)}), is_paused.then_some((409, "already_paused"))),
            5 => ("resume", json!({}), (!is_paused).then_some((409, "not_paused"))),
            6 => ("cancel", json!({"at": day(10)}), None),
            _ => ("uncancel", json!({}), (!is_canceled).then_some((409, "not_canceled"))),
        };
        commands.push((verb, body, refusal));
        if refusal.is_some() {
            break;
        }
        match verb {
            "renew" => renew(&mut state),
            "pause" => {
                state.insert("pausedFrom".to_owned(), day(5));
                state.insert("pausedUntil".to_owned(), day(9));
            }
            "resume" => {
                state.remove("pausedFrom");
                state.remove("pausedUntil");
            }
            "cancel" => drop(state.insert("canceledAt".to_owned(), day(10))),
            _ => drop(state.remove("canceledAt")),
        }
    }
    (Script { created, commands }, state)
}

/// What the senders met.
#[derive(Debug, Default)]
struct Met {
    attempts: AtomicU64,
    hang_ups: AtomicU64,
    lost: AtomicU64,
    unavailable: AtomicU64,
    unknown: AtomicU64,
    in_use: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

fn counted(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

/// The billing system.
struct Billing {
    client: Client<HttpConnector, Full<Bytes>>,
    /// Where it may send to; the last one is killed now and then.
    targets: Mutex<Vec<SocketAddr>>,
    parcels: Mutex<VecDeque<Parcel>>,
    total: usize,
    taken: AtomicUsize,
    met: Met,
}

impl Billing {
    /// Sends a request once; nothing when no answer came.
    async fn try_send(&self, message: &Message, headers: &[(&str, &str)], to: SocketAddr) -> Option<(u16, String)> {
        let mut request = Request::builder().method(message.method).uri(format!("http://{to}{}", message.path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(message.body.clone()))).expect("a request");
        let response = self.client.request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8(body.to_vec()).expect("UTF-8")))
    }

    fn target(&self, dice: &mut Dice) -> SocketAddr {
        let targets = self.targets.lock().expect("no sender holds it");
        targets[dice.index(targets.len())]
    }

    /// Sends a message until there is an answer that says what became of it, which has to be what was meant.
    async fn deliver(&self, dice: &mut Dice, message: &Message) -> String {
        let start = Instant::now();
        let mut headers = vec![ADMIN_CREDENTIALS, JSON];
        headers.extend(message.key.iter().map(|key| ("idempotency-key", key.as_str())));
        loop {
            assert!(start.elapsed() < LONGEST_DELIVERY, "never answered: {} {}", message.path, message.body);
            count(&self.met.attempts);
            let sent = self.try_send(message, &headers, self.target(dice));
            // Some do not wait for the answer.
            let patience = if dice.chance(10) { Duration::from_millis(dice.below(30)) } else { PATIENCE };
            let answer = match tokio::time::timeout(patience, sent).await {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    count(&self.met.lost);
                    tokio::time::sleep(Duration::from_millis(10 + dice.below(40))).await;
                    continue;
                }
                Err(_) => {
                    count(&self.met.hang_ups);
                    continue;
                }
            };
            let (status, body) = answer;
            if (200..300).contains(&status) {
                assert_eq!(message.refusal, None, "done: {} {}: {body}", message.path, message.body);
                return body;
            }
            let problem: Value = serde_json::from_str(&body).expect("JSON");
            let code = problem["code"].as_str().expect("a code");
            match (status, code) {
                (503, "outcome_unknown") => count(&self.met.unknown),
                (503, _) => count(&self.met.unavailable),
                (409, "idempotency_key_in_use") => count(&self.met.in_use),
                refusal => {
                    assert_eq!(message.refusal, Some(refusal), "{} {}: {body}", message.path, message.body);
                    return body;
                }
            }
            tokio::time::sleep(Duration::from_millis(10 + dice.below(40))).await;
        }
    }

    /// Sends a message with a key, perhaps twice at once and again after that: there is one answer.
    async fn deliver_once(&self, dice: &mut Dice, message: &Message) -> String {
        let mut other = Dice(dice.next());
        if dice.chance(60) {
            return self.deliver(dice, message).await;
        }
        let (answer, same) = tokio::join!(self.deliver(dice, message), self.deliver(&mut other, message));
        assert_eq!(answer, same, "{} {}", message.path, message.body);
        answer
    }

    /// Takes up one thing after the other.
    async fn send(self: Arc<Self>, mut dice: Dice) {
        loop {
            let parcel = self.parcels.lock().expect("no sender holds it").pop_front();
            let Some(parcel) = parcel else { return };
            self.taken.fetch_add(1, Ordering::SeqCst);
            match parcel {
                Parcel::Put(state) => drop(self.deliver(&mut dice, &Message::put(&state)).await),
                Parcel::Batch { states, is_atomic, is_poisoned, key } => {
                    self.batch(&mut dice, &states, is_atomic, is_poisoned, key).await;
                }
                Parcel::Script(script) => self.play(&mut dice, script).await,
                Parcel::Club { members, renewals, key } => self.gather(&mut dice, &members, &renewals, &key).await,
            }
            if dice.chance(30) {
                self.ask(&mut dice).await;
            }
        }
    }

    /// Makes somebody known to a replica, so that there is something that must not go stale.
    async fn ask(&self, dice: &mut Dice) {
        let user = format!("u{}", dice.index(KNOWN));
        let body = json!({"user": {"id": user}, "client": {"id": "c"}, "scopes": SCOPES}).to_string();
        let message = Message { method: "POST", path: ACCESS_TOKEN.to_owned(), key: None, body, refusal: None };
        let answer = self.try_send(&message, &[HOOK_CREDENTIALS, JSON], self.target(dice)).await;
        if let Some((status, body)) = answer {
            assert!([200, 503].contains(&status), "{body}");
        }
    }

    async fn batch(&self, dice: &mut Dice, states: &[State], is_atomic: bool, is_poisoned: bool, key: Option<String>) {
        let puts: Vec<_> = states.iter().map(|state| json!({ "put": state })).collect();
        let message = |items: &[Value], key: Option<String>, refusal| {
            let body = json!({"atomic": is_atomic, "items": items}).to_string();
            Message { method: "POST", path: BATCH.to_owned(), key, body, refusal }
        };
        let statuses = |answer: &str| {
            let answer: Value = serde_json::from_str(answer).expect("JSON");
            let items = answer["items"].as_array().expect("items").clone();
            items.iter().map(|item| item["status"].as_u64().expect("a status")).collect::<Vec<_>>()
        };
        let is_done = |statuses: &[u64]| statuses.iter().all(|status| [200, 201].contains(status));
        if is_poisoned {
            // A version above all others, which nobody meant, and a subscription of nobody's; then what cannot be.
            let mut items = puts.clone();
            if is_atomic {
                let mut never = states[0].clone();
                never.insert("sourceVersion".to_owned(), 1_000.into());
                never.insert("validUntil".to_owned(), Value::Null);
                never.remove("graceUntil");
                items.push(json!({"put": never}));
                never.insert("externalId".to_owned(), "never".into());
                items.push(json!({"put": never}));
            }
            let mut impossible = states[0].clone();
            impossible.insert("sourceVersion".to_owned(), 2_000.into());
            impossible.insert("scopes".to_owned(), json!(["unknown"]));
            items.push(json!({"put": impossible}));
            let poisoned = key.as_ref().map(|key| format!("{key}-poisoned"));
            let refusal = is_atomic.then_some((422, "unknown_scopes"));
            let answer = self.deliver(dice, &message(&items, poisoned, refusal)).await;
            if !is_atomic {
                let mut statuses = statuses(&answer);
                assert_eq!(statuses.pop(), Some(422), "{answer}");
                assert!(is_done(&statuses), "{answer}");
                return;
            }
        }
        let message = message(&puts, key, None);
        let answer = match message.key {
            Some(_) => self.deliver_once(dice, &message).await,
            None => self.deliver(dice, &message).await,
        };
        assert!(is_done(&statuses(&answer)), "{answer}");
    }

    async fn play(&self, dice: &mut Dice, Script { created, commands }: Script) {
        let user = subject(&created).to_owned();
        let create = Message::post("/v1/subscriptions", format!("{user}-create"), &Value::Object(created));
        let first = self.deliver_once(dice, &create).await;
        let id: Value = serde_json::from_str(&first).expect("JSON");
        let id = id["id"].as_str().expect("an id");
        let mut done = vec![(create, first)];
        for (number, (verb, body, refusal)) in commands.into_iter().enumerate() {
            let mut message =
                Message::post(format!("/v1/subscriptions/{id}/{verb}"), format!("{user}-{number}"), &body);
            message.refusal = refusal;
            if refusal.is_some() {
                self.deliver(dice, &message).await;
                continue;
            }
            let answer = self.deliver_once(dice, &message).await;
            done.push((message, answer));
            // One of those before comes once more, long after.
            let (message, answer) = &done[dice.index(done.len())];
            assert_eq!(self.deliver(dice, message).await, *answer, "{}", message.path);
        }
    }

    async fn gather(&self, dice: &mut Dice, members: &[State], renewals: &[bool], key: &str) {
        let items: Vec<_> = members.iter().map(|member| json!({ "create": member })).collect();
        let create = Message::post(BATCH, format!("{key}-create"), &json!({"atomic": true, "items": items}));
        let created: Value = serde_json::from_str(&self.deliver_once(dice, &create).await).expect("JSON");
        let items = created["items"].as_array().expect("items");
        let ids: Vec<_> = items.iter().map(|item| item["subscription"]["id"].clone()).collect();
        let items: Vec<_> = ids.iter().map(|id| json!({"id": id, "renew": {"duration": "P1M"}})).collect();
        // They do not wait for each other, and it does not matter which one comes first.
        let renewals: Vec<_> = renewals
            .iter()
            .enumerate()
            .map(|(number, is_atomic)| {
                Message::post(BATCH, format!("{key}-{number}"), &json!({"atomic": is_atomic, "items": items}))
            })
            .collect();
        let dices: Vec<_> = renewals.iter().map(|_| Dice(dice.next())).collect();
        let sent =
            renewals.iter().zip(dices).map(async |(message, mut dice)| self.deliver_once(&mut dice, message).await);
        for answer in futures_util::future::join_all(sent).await {
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            assert!(answer["items"].as_array().expect("items").iter().all(|item| item["status"] == 200), "{answer}");
        }
    }

    /// Waits until so much of all was taken up.
    async fn progress(&self, part: usize, of: usize) {
        while self.taken.load(Ordering::SeqCst) * of < self.total * part {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn is_over(&self) -> bool {
        self.parcels.lock().expect("no sender holds it").is_empty()
    }
}

/// A process that is killed in the middle, again and again.
struct Mortal {
    folder: Folder,
    url: String,
    server: Option<Server>,
}

impl Mortal {
    /// Starts it, and tells where it serves.
    fn start(&mut self) -> SocketAddr {
        let environment =
            [&CREDENTIALS[..], &[("TOLLGATE_DATABASE_URL", &self.url), ("TOLLGATE_LOG", "warn")]].concat();
        let server = tokio::task::block_in_place(|| Server::start(&self.folder, &[], &environment));
        let address = server.main;
        self.server = Some(server);
        address
    }

    /// Kills it, so that it has no time for anything.
    fn kill(&mut self) {
        self.server = None;
    }
}

/// What happens to those who write, one thing after the other while messages come.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Cut,
    LoseCommits,
    Refuse,
}

async fn harm(billing: &Billing, proxy: Option<&Proxy>, mortal: &mut Mortal) {
    use Fault::{Cut, Kill, LoseCommits, Refuse};
    let faults = match proxy {
        Some(_) => {
            &[Cut, LoseCommits, Kill, Cut, Refuse, Kill, LoseCommits, Cut, Kill, Refuse, LoseCommits, Kill, Cut][..]
        }
        None => &[Kill; 5],
    };
    for (number, fault) in faults.iter().enumerate() {
        billing.progress(number + 1, faults.len() + 2).await;
        match (fault, proxy) {
            (Cut, Some(proxy)) => proxy.cut(),
            (LoseCommits, Some(proxy)) => {
                let before = counted(&billing.met.unknown);
                proxy.lose_commits();
                while counted(&billing.met.unknown) < before + 3 && !billing.is_over() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                proxy.resume();
            }
            (Refuse, Some(proxy)) => {
                proxy.refuse();
                tokio::time::sleep(Duration::from_millis(200)).await;
                proxy.resume();
            }
            (Kill | Cut | LoseCommits | Refuse, _) => {
                mortal.kill();
                let address = mortal.start();
                *billing.targets.lock().expect("no sender holds it").last_mut().expect("a target") = address;
            }
        }
    }
}

/// A subscription of an answer without what the service says of its own.
fn stated(subscription: &Value) -> State {
    let mut state = object(subscription.clone());
    for name in ["id", "status", "version", "createdAt", "updatedAt"] {
        assert!(state.remove(name).is_some(), "no {name} in {subscription}");
    }
    state
}

fn without_status(subscription: &Value) -> State {
    let mut state = object(subscription.clone());
    state.remove("status");
    state
}

/// Every change that the feed tells, once all of them show: on Postgres they wait for older transactions to end, be they
/// other tests' on the same server.
async fn all_changes(app: &App, count: usize) -> Vec<Value> {
    let start = Instant::now();
    let (mut items, mut since) = (Vec::new(), String::new());
    loop {
        let page = app.call("GET", &format!("/v1/changes?limit=200{since}")).await.expect(200);
        items.extend(page["items"].as_array().expect("items").iter().cloned());
        since = format!("&since={}", page["next"].as_str().expect("a place"));
        if page["hasMore"] == false {
            if items.len() >= count {
                return items;
            }
            assert!(start.elapsed() < PATIENCE, "{} of {count} changes show", items.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Checks the subscriptions that are listed, and gives them by id.
async fn check_subscriptions(app: &App, intended: &BTreeMap<String, State>) -> BTreeMap<String, Value> {
    let listed = app.walk("/v1/subscriptions?limit=200").await;
    let names: BTreeSet<_> = listed.iter().map(|subscription| name(&stated(subscription))).collect();
    let missing: Vec<_> = intended.keys().filter(|name| !names.contains(*name)).take(9).collect();
    let unmeant: Vec<_> = names.iter().filter(|name| !intended.contains_key(*name)).take(9).collect();
    assert!(missing.is_empty() && unmeant.is_empty(), "missing {missing:?}, never meant {unmeant:?}, seed {SEED}");
    assert_eq!(listed.len(), names.len(), "some are there twice, seed {SEED}");
    for subscription in &listed {
        let state = stated(subscription);
        assert_eq!(&state, &intended[&name(&state)], "seed {SEED}");
        assert_eq!(subscription["status"], status(&state, app.now()), "{subscription}");
    }
    let of_source = app.walk(&format!("/v1/subscriptions?limit=200&source={SOURCE}")).await;
    let expected: Vec<_> = listed.iter().filter(|subscription| subscription["source"] == SOURCE).cloned().collect();
    assert_eq!(of_source, expected);
    assert_eq!(of_source.len(), KNOWN);
    assert_eq!(app.walk("/v1/subscriptions?limit=200&includeDeleted=true").await, listed, "none was deleted");
    listed
        .into_iter()
        .map(|subscription| (subscription["id"].as_str().expect("an id").to_owned(), subscription))
        .collect()
}

/// Checks that changes of one subscription are whole: each made of the one before, from the first to what is there.
fn check_changes(changes: &[&Value], there: &Value) {
    let mut before: Option<&Value> = None;
    for (version, change) in (1..).zip(changes) {
        let change = &change["subscription"];
        let after = &change["after"];
        assert_eq!(after["version"], version, "{after}, seed {SEED}");
        assert_eq!(change.get("before").map(without_status), before.map(without_status), "seed {SEED}");
        let last = before.and_then(|before| before["sourceVersion"].as_i64());
        assert!(last < after["sourceVersion"].as_i64() || last.is_none(), "it went back: {change}, seed {SEED}");
        before = Some(after);
    }
    assert_eq!(before.map(without_status), Some(without_status(there)), "seed {SEED}");
}

async fn check_histories(app: &Arc<App>, there: &BTreeMap<String, Value>) {
    let subscriptions: Arc<Vec<Value>> = Arc::new(there.values().cloned().collect());
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..6 {
        let (app, subscriptions, next) = (Arc::clone(app), Arc::clone(&subscriptions), Arc::clone(&next));
        readers.spawn(async move {
            while let Some(subscription) = subscriptions.get(next.fetch_add(1, Ordering::SeqCst)) {
                let id = subscription["id"].as_str().expect("an id");
                let history = app.walk(&format!("/v1/subscriptions/{id}/history")).await;
                let is_known = subscription.get("source").is_some();
                assert_eq!(history[0]["action"], if is_known { "put" } else { "create" });
                check_changes(&history.iter().collect::<Vec<_>>(), subscription);
            }
        });
    }
    while let Some(read) = readers.join_next().await {
        read.expect("read");
    }
}

async fn check_feed(app: &App, there: &BTreeMap<String, Value>) {
    let versions: i64 = there.values().map(|subscription| subscription["version"].as_i64().expect("a version")).sum();
    let expected = usize::try_from(versions).expect("a count") + SCOPES.len();
    let changes = all_changes(app, expected).await;
    assert_eq!(changes.len(), expected, "each change once, seed {SEED}");
    measured("changes", changes.len());
    let mut by_id: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for change in &changes {
        if let Some(id) = change["subscription"]["id"].as_str() {
            by_id.entry(id).or_default().push(change);
        }
    }
    assert_eq!(by_id.len(), there.len());
    let mut overtaken = 0;
    for (id, mut changes) in by_id {
        let version = |change: &&Value| change["subscription"]["after"]["version"].as_i64();
        // A batch has its place from its first write on, and may wait later for one with a place after it: so a reader
        // goes by the version.
        overtaken += changes.windows(2).filter(|pair| version(&pair[1]) < version(&pair[0])).count();
        changes.sort_by_key(version);
        check_changes(&changes, &there[id]);
    }
    measured("changes that the feed tells before an older one of the same subscription", overtaken);
}

/// Checks what the hook answers to some of those who hold something, at several instants.
async fn check_hooks(app: &App, base: DateTime<Utc>, intended: &BTreeMap<String, State>) {
    let mut by_subject: BTreeMap<&str, Vec<&State>> = BTreeMap::new();
    for state in intended.values() {
        by_subject.entry(subject(state)).or_default().push(state);
    }
    let mut dice = Dice(SEED);
    let sample: Vec<_> = by_subject.into_iter().filter(|_| dice.chance(10)).collect();
    let removed = |states: &[&State], now: DateTime<Utc>| {
        let is_held = |scope: &&str| {
            let grants = |state: &&&State| ["active", "grace"].contains(&status(state, now));
            let mut names = states.iter().filter(grants).flat_map(|state| state["scopes"].as_array().expect("scopes"));
            names.any(|name| name == scope)
        };
        SCOPES.into_iter().filter(|scope| !is_held(scope)).collect::<Vec<_>>()
    };
    for (user, states) in &sample {
        let expected = removed(states, app.now());
        // What the other replica has written last may show a moment later.
        eventually!("what was written", PATIENCE, app.removed(Some(user), "c", &SCOPES).await == expected);
    }
    for days in [-30, -2, 1, 7, 12, 40, 100] {
        for hours in [-1, 0] {
            app.set_now(base + TimeDelta::days(days) + TimeDelta::hours(hours));
            for (user, states) in &sample {
                let expected = removed(states, app.now());
                assert_eq!(app.removed(Some(user), "c", &SCOPES).await, expected, "{user}, {days} days, seed {SEED}");
            }
        }
    }
}

/// Waits until the database can be asked on every connection again.
async fn recover(app: &Arc<App>) {
    eventually!("all is well", PATIENCE, {
        let mut readers = JoinSet::new();
        for _ in 0..16 {
            let app = Arc::clone(app);
            readers.spawn(async move { app.call("GET", "/v1/scopes").await.status == 200 });
        }
        readers.join_all().await.into_iter().all(|is_answered| is_answered)
    });
}

on_both! {
    async fn whatever_happens_to_messages_and_to_those_who_take_them_the_end_is_what_billing_meant(database) {
        measured("seed", SEED);
        let start = Instant::now();
        let proxy = match database.backend {
            Backend::Sqlite => None,
            Backend::Postgres => Some(Proxy::start(&database.url).await),
        };
        let url = proxy.as_ref().map_or(&database.url, |proxy| &proxy.url).clone();
        let app = Arc::new(database.app_at(&url, Options::default()).await);
        // The clock of the process beside it goes on: keys that both know last as long for both.
        let base = SystemClock.now().with_nanosecond(0).expect("a second");
        app.set_now(base);
        for scope in SCOPES {
            app.call_with("POST", "/v1/scopes", &json!({"name": scope, "requires": "user"})).await.expect(201);
        }
        let mut mortal = Mortal { folder: Folder::new(), url, server: None };
        let address = mortal.start();
        let Plan { intended, parcels } = Plan::new(base);
        measured("subscriptions that are meant", intended.len());
        measured("parcels", parcels.len());

        let billing = Arc::new(Billing {
            client: Client::builder(TokioExecutor::new()).build_http(),
            targets: Mutex::new(vec![app.address, address]),
            total: parcels.len(),
            parcels: Mutex::new(parcels),
            taken: AtomicUsize::new(0),
            met: Met::default(),
        });
        let mut senders = JoinSet::new();
        for number in 0..SENDERS {
            senders.spawn(Arc::clone(&billing).send(Dice(SEED.wrapping_mul(number + 2))));
        }
        let send = async {
            while let Some(sent) = senders.join_next().await {
                sent.expect("sent");
            }
        };
        tokio::join!(send, harm(&billing, proxy.as_ref(), &mut mortal));
        mortal.kill();
        let Met { attempts, hang_ups, lost, unavailable, unknown, in_use } = &billing.met;
        for (what, counter) in [
            ("attempts", attempts), ("hang-ups", hang_ups), ("connections that were lost", lost), ("not available", unavailable),
            ("outcomes unknown", unknown), ("keys in use", in_use),
        ] {
            measured(what, counted(counter));
        }
        assert!(counted(hang_ups) > 100 && counted(lost) > 10 && counted(in_use) > 0, "{:?}", billing.met);
        if proxy.is_some() {
            assert!(counted(unknown) > 3 && counted(unavailable) > 3, "{:?}", billing.met);
        }
        measured("until all was delivered", start.elapsed());

        recover(&app).await;
        let there = check_subscriptions(&app, &intended).await;
        check_histories(&app, &there).await;
        check_feed(&app, &there).await;
        check_hooks(&app, base, &intended).await;
        measured("until all was checked", start.elapsed());
    }
}
