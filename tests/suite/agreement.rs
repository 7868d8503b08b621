//! SQL against the domain: what the database selects, orders and keeps is what the rules say, at every boundary.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, Statement};
use tollgate::{
    domain::{
        catalogue::{CatalogueScope, Requires},
        claims::Claims,
        facts::{Facts, Standing},
        holdings::Holdings,
        life::{Life, Status, Term},
        scope::Scope,
        subject::{Subject, SubjectId, SubjectType},
        subscription::{ScopeSet, Subscription},
        time::is_representable,
        window::Window,
    },
    store::{
        self, Database,
        lane::Connection,
        subscription::{After, Filter},
    },
};
use uuid::Uuid;

use crate::support::{MICROSECOND, instant, load_facts, on_both};

/// More than there are rows.
const ALL: u64 = 10_000;

/// Instants at which something begins or ends: with no fraction of a second, with three digits and with six, before
/// 1970, and the first and last that there are.
const BOUNDARIES: [&str; 9] = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00.000001Z",
    "1969-12-31T23:59:59.999999Z",
    "2026-06-15T11:59:59.999999Z",
    "2026-06-15T12:00:00Z",
    "2026-06-15T12:00:00.5Z",
    "2026-06-15T12:00:00.500001Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59.999999Z",
];

fn boundaries() -> Vec<DateTime<Utc>> {
    BOUNDARIES.map(instant).into()
}

/// Each boundary, one microsecond before and one after.
fn presents() -> Vec<DateTime<Utc>> {
    let mut presents: Vec<_> =
        boundaries().into_iter().flat_map(|at| [at - MICROSECOND, at, at + MICROSECOND]).collect();
    presents.retain(|at| is_representable(*at));
    presents.sort();
    presents.dedup();
    presents
}

/// Every life whose window and cancellation lie on boundaries; and of a few boundaries close to each other, every one
/// with a grace and a pause besides.
fn lives() -> Vec<Life> {
    let mut lives = Vec::new();
    let close = || boundaries().into_iter().skip(3).take(4);
    let windows = || {
        let ends = || close().map(Some).chain([None]);
        close().flat_map(move |from| ends().filter_map(move |until| Window::new(from, until).ok()))
    };
    for (window, grace_until) in
        windows().flat_map(|window| close().map(Some).chain([None]).map(move |end| (window, end)))
    {
        let Ok(term) = Term::new(window, grace_until) else { continue };
        for pause in windows().map(Some).chain([None]) {
            lives.extend(close().map(Some).chain([None]).map(|canceled_at| Life { term, pause, canceled_at }));
        }
    }
    let ends = || boundaries().into_iter().map(Some).chain([None]);
    for from in boundaries() {
        for until in ends() {
            for canceled_at in ends() {
                if let Ok(window) = Window::new(from, until) {
                    lives.push(Life { canceled_at, ..window.into() });
                }
            }
        }
    }
    lives
}

fn scope(name: &str) -> Scope {
    Scope::parse(name).expect("a scope")
}

fn user(id: &str) -> Subject {
    Subject { kind: SubjectType::User, id: SubjectId::parse(id).expect("an id") }
}

fn subscription(id: Uuid, subject: Subject, scopes: &[&str], life: Life) -> Subscription {
    let scopes = ScopeSet::new(scopes.iter().map(|name| scope(name)).collect()).expect("a set");
    let (created_at, updated_at) =
        (life.term.window().from(), life.canceled_at.unwrap_or(instant("2026-01-01T00:00:00.25Z")));
    Subscription {
        id,
        subject,
        scopes,
        life,
        external: None,
        claims: Claims::default(),
        version: 7,
        created_at,
        updated_at,
        deleted_at: None,
    }
}

/// An id whose order says nothing about the order of creation.
fn scattered_id(number: usize) -> Uuid {
    Uuid::from_u128((number as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
}

async fn register(database: &Database, names: &[&str]) {
    let transaction = database.begin().await.expect("begun");
    for name in names {
        let at = instant("2026-01-01T00:00:00.000001Z");
        let scope = CatalogueScope {
            name: scope(name),
            description: None,
            requires: Requires::Any,
            enforced: true,
            claims: Claims::default(),
            version: 1,
            created_at: at,
            updated_at: at,
        };
        store::catalogue::insert(&transaction, &scope).await.expect("inserted");
    }
    store::database::commit(transaction).await.expect("committed");
}

async fn record(database: &Database, subscriptions: &[Subscription]) {
    let transaction = database.begin().await.expect("begun");
    for subscription in subscriptions {
        store::subscription::insert(&transaction, subscription).await.expect("inserted");
    }
    store::database::commit(transaction).await.expect("committed");
}

async fn ids(database: &Database, filter: &Filter, now: DateTime<Utc>) -> Vec<Uuid> {
    let found = store::subscription::list(database.readers(), filter, now, None, ALL).await.expect("a list");
    found.into_iter().map(|subscription| subscription.id).collect()
}

on_both! {
    async fn a_list_by_status_holds_exactly_those_whose_life_says_so(database) {
        let opened = database.connect().await;
        register(&opened, &["email"]).await;
        let mut all: Vec<_> = (0..).zip(lives()).map(|(number, life)| subscription(scattered_id(number), user("u"), &["email"], life)).collect();
        record(&opened, &all).await;
        all.sort_by_key(|subscription| subscription.id);
        let within = |now, statuses: &[Status]| -> Vec<Uuid> {
            all.iter().filter(|subscription| statuses.contains(&subscription.life.status(now))).map(|subscription| subscription.id).collect()
        };
        let statuses = |now, status| within(now, &[status]);
        let granting = |now| within(now, &[Status::Active, Status::Grace]);
        let elsewhere = instant("2026-06-15T12:00:00.25Z");
        let canceled = statuses(elsewhere, Status::Canceled);
        let mut seen = [0; Status::ALL.len()];
        for now in presents() {
            for (count, status) in seen.iter_mut().zip(Status::ALL) {
                let filter = Filter { status: Some(status), ..Filter::default() };
                let expected = statuses(now, status);
                assert_eq!(ids(&opened, &filter, now).await, expected, "{status} at {now}");
                *count += expected.len();
            }
            let filter = Filter { active_at: Some(now), ..Filter::default() };
            assert_eq!(ids(&opened, &filter, elsewhere).await, granting(now), "active at {now}");
            let filter = Filter { active_at: Some(now), status: Some(Status::Canceled), ..Filter::default() };
            let mut expected = granting(now);
            expected.retain(|id| canceled.contains(id));
            assert_eq!(ids(&opened, &filter, elsewhere).await, expected, "active at {now}, canceled by now");
        }
        assert!(seen.iter().all(|count| *count > 100), "every status occurs: {seen:?}");
        opened.close().await;
    }

    async fn what_is_written_reads_back_equal_to_the_microsecond(database) {
        let opened = database.connect().await;
        register(&opened, &["a", "B", "b"]).await;
        let mut all: Vec<_> = (0..).zip(lives()).map(|(number, life)| {
            let id = format!("{number} é\u{301} \u{feff}'\"\\");
            subscription(scattered_id(number), user(&id), &["b", "a", "B"], life)
        }).collect();
        record(&opened, &all).await;
        all.sort_by_key(|subscription| subscription.id);
        let now = instant("2026-06-15T12:00:00Z");
        let listed = store::subscription::list(opened.readers(), &Filter::default(), now, None, ALL).await.expect("a list");
        assert_eq!(listed, all);
        for expected in all.iter().step_by(50) {
            let found = store::subscription::find(opened.readers(), expected.id).await.expect("asked");
            assert_eq!(found.as_ref(), Some(expected));
        }
        for at in boundaries() {
            let mut scope = store::catalogue::find(opened.readers(), &scope("a")).await.expect("asked").expect("a scope");
            (scope.created_at, scope.updated_at) = (at, at);
            let transaction = opened.begin().await.expect("begun");
            store::catalogue::update(&transaction, &scope).await.expect("updated");
            store::database::commit(transaction).await.expect("committed");
            let found = store::catalogue::find(opened.readers(), &scope.name).await.expect("asked");
            assert_eq!(found, Some(scope));
        }
        opened.close().await;
    }

    async fn the_facts_loaded_stand_as_the_lives_do(database) {
        let opened = database.connect().await;
        register(&opened, &["a", "b", "c"]).await;
        let lives = lives();
        // Each subject has three lives of one scope and two of another, of every kind that there is.
        let mut subscriptions = Vec::new();
        let mut subjects = Vec::new();
        for (number, chunk) in lives.chunks(3).enumerate() {
            let kind = if number % 2 == 0 { SubjectType::User } else { SubjectType::Client };
            let subject = Subject { kind, id: user(&format!("s{}", number / 2)).id };
            for (index, life) in chunk.iter().enumerate() {
                let scopes: &[&str] = if index == 0 { &["a"] } else { &["b", "a"] };
                subscriptions.push(subscription(scattered_id(subscriptions.len()), subject.clone(), scopes, *life));
            }
            subjects.push(subject);
        }
        record(&opened, &subscriptions).await;
        let deleted = subscription(scattered_id(9_999), user("deleted"), &["a"], lives[0]);
        record(&opened, std::slice::from_ref(&deleted)).await;
        let transaction = opened.begin().await.expect("begun");
        let gone = deleted.clone().deleted(instant("2026-01-01T00:00:00Z"));
        store::subscription::update(&transaction, &deleted, &gone).await.expect("deleted");
        store::database::commit(transaction).await.expect("committed");
        subjects.extend([deleted.subject, user("nobody"), user("S0")]);

        let loaded = load_facts(&opened, &subjects).await.expect("facts");
        assert_eq!(loaded.len(), subjects.len());
        let mut seen = [0; 7];
        for (subject, loaded) in subjects.iter().zip(&loaded) {
            let own: Vec<_> = subscriptions.iter().filter(|subscription| subscription.subject == *subject).collect();
            assert_eq!(loaded.is_empty(), own.is_empty(), "{:?}", subject.id);
            let pairs = own.iter().flat_map(|subscription| {
                subscription.scopes.as_slice().iter().map(|scope| (scope.clone(), subscription.life))
            });
            let expected = Facts::new(pairs.collect());
            for now in presents() {
                for scope in ["a", "b", "c", "A"] {
                    let standing = loaded.standing(scope, now);
                    assert_eq!(standing, best(&own, scope, now), "{:?} {scope} at {now}", subject.id);
                    assert_eq!(loaded.held_until(scope, now), expected.held_until(scope, now), "{:?} {scope} at {now}", subject.id);
                    seen[standing as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 20), "every standing occurs: {seen:?}");
        let load = async |lane: &mut Connection| store::facts::load_holdings(lane, &subjects).await;
        let holdings = opened.views().run_at_once(Duration::from_secs(10), load).await.expect("holdings");
        for ((subject, holdings), loaded) in subjects.iter().zip(holdings).zip(&loaded) {
            let own = subscriptions.iter().filter(|subscription| subscription.subject == *subject);
            let named = own.flat_map(|subscription| {
                subscription.scopes.as_slice().iter().map(|scope| (scope.clone(), subscription.id, subscription.life))
            });
            assert_eq!(holdings, Holdings::new(named.collect()), "{:?}", subject.id);
            assert_eq!(holdings.facts().is_empty(), loaded.is_empty());
        }
        let reversed: Vec<_> = subjects.iter().rev().cloned().collect();
        let again = load_facts(&opened, &reversed).await.expect("facts");
        let empty = |facts: &[Facts]| facts.iter().map(Facts::is_empty).collect::<Vec<_>>();
        assert_eq!(empty(&again).into_iter().rev().collect::<Vec<_>>(), empty(&loaded), "answers stand in the order of the question");
        assert_eq!(load_facts(&opened, &[]).await.expect("nothing"), []);
        opened.close().await;
    }

    async fn instants_sort_in_the_database_as_they_do_in_time(database) {
        let opened = database.connect().await;
        register(&opened, &["email"]).await;
        let mut presents = presents();
        let rows: Vec<_> = (0..).zip(&presents).map(|(number, from)| {
            let life = Window::new(*from, None).expect("a window").into();
            subscription(scattered_id(number), user("u"), &["email"], life)
        }).collect();
        record(&opened, &rows).await;
        let sql = "SELECT valid_from FROM subscription ORDER BY valid_from DESC";
        let statement = Statement::from_string(opened.readers().get_database_backend(), sql);
        let found = opened.readers().query_all_raw(statement).await.expect("asked");
        let found: Vec<DateTime<Utc>> = found.iter().map(|row| row.try_get_by_index(0).expect("an instant")).collect();
        presents.reverse();
        assert_eq!(found, presents);
        opened.close().await;
    }

    async fn ids_and_names_sort_byte_by_byte_and_pages_join_without_a_gap(database) {
        let opened = database.connect().await;
        let mut names: Vec<String> = (0x21..=0x7E_u8).filter(|byte| ![b'"', b'\\'].contains(byte)).map(|byte| char::from(byte).to_string()).collect();
        names.extend(["aa", "a-", "a_", "aB", "Aa", "AB", "a.b", "a:b", "zz", "~~"].map(str::to_owned));
        register(&opened, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut sorted: Vec<Scope> = names.iter().map(|name| scope(name)).collect();
        sorted.sort();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store::catalogue::list(opened.readers(), after.as_ref(), 7).await.expect("a page");
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            found.extend(page.into_iter().map(|scope| scope.name));
        }
        assert_eq!(found, sorted);

        let life = Life::from(Window::new(instant("2026-01-01T00:00:00Z"), None).expect("a window"));
        let mut expected: Vec<Uuid> = (0..100).map(scattered_id).collect();
        expected.extend([Uuid::nil(), Uuid::max(), Uuid::from_u128(1 << 127), Uuid::from_u128((1 << 127) - 1), Uuid::from_u128(0xFF)]);
        let rows: Vec<_> = expected.iter().map(|id| subscription(*id, user("u"), &["a", "zz"], life)).collect();
        record(&opened, &rows).await;
        expected.sort();
        let (mut found, mut after) = (Vec::new(), None);
        let filter = Filter { subject: Some(user("u")), scope: Some(scope("zz")), ..Filter::default() };
        loop {
            let page = store::subscription::list(opened.readers(), &filter, life.term.window().from(), after, 7).await.expect("a page");
            let Some(last) = page.last() else { break };
            after = Some(After { id: last.id, updated_at: last.updated_at });
            found.extend(page.into_iter().map(|subscription| subscription.id));
        }
        assert_eq!(found, expected);
        opened.close().await;
    }
}

/// The best standing that any of these subscriptions gives, in the words of the rule: active before grace before paused
/// before scheduled before canceled before expired.
fn best(subscriptions: &[&Subscription], name: &str, now: DateTime<Utc>) -> Standing {
    let naming =
        |subscription: &&&Subscription| subscription.scopes.as_slice().iter().any(|scope| scope.as_str() == name);
    let statuses: Vec<_> =
        subscriptions.iter().filter(naming).map(|subscription| subscription.life.status(now)).collect();
    let has = |status| statuses.contains(&status);
    if has(Status::Active) {
        Standing::Active
    } else if has(Status::Grace) {
        Standing::Grace
    } else if has(Status::Paused) {
        Standing::Paused
    } else if has(Status::Scheduled) {
        Standing::Scheduled
    } else if has(Status::Canceled) {
        Standing::Canceled
    } else if has(Status::Expired) {
        Standing::Expired
    } else {
        Standing::NoSubscription
    }
}
