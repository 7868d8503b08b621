//! The worlds that the checker runs. The first thread of each asks too: fewer threads leave fewer interleavings.

use std::sync::Arc;

use loom::{
    model::Builder,
    thread::{self, JoinHandle},
};

use super::{
    platform::{
        Instant, Key,
        rules::{self, Rule},
    },
    world::{Limits, World},
};

const SUBJECT: Key = Key(0);
const OTHER: Key = Key(1);

/// The instant at which the models begin, and nearly all of them end.
const START: Instant = 0;
/// When what was read at the start is no longer believed.
const LATER: Instant = 1;

/// The service's, as far as it matters with so few threads.
const WIDE: Limits = Limits { most_running: 2, batch: 2 };
/// Whatever is asked for meanwhile has to wait in the queue.
const NARROW: Limits = Limits { most_running: 1, batch: 1 };

/// Runs every interleaving of a model.
fn check(model: fn()) {
    explore(model, None, None);
}

/// Runs every interleaving of a model in which threads that could go on are interrupted so many times at most.
fn check_within(interruptions: usize, model: fn()) {
    explore(model, Some(interruptions), None);
}

/// Runs a model with a rule broken. Few interruptions are enough to see what comes of it.
fn check_without(rule: Rule, model: fn()) {
    explore(model, Some(2), Some(rule));
}

fn explore(model: fn(), interruptions: Option<usize>, broken: Option<Rule>) {
    rules::break_only(broken);
    let mut checker = Builder::new();
    checker.max_threads = 3;
    checker.preemption_bound = interruptions;
    checker.check(model);
}

fn empty(limits: Limits) -> Arc<World> {
    Arc::new(World::new(limits))
}

fn cached(limits: Limits) -> Arc<World> {
    let world = empty(limits);
    assert_eq!(world.ask(&SUBJECT, START).seen(&world), Some(0));
    world
}

fn spawn<T: 'static>(world: &Arc<World>, run: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || run(&world))
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("a panic ends the check")
}

/// While a subject that is cached is changed, somebody asks for it.
fn a_change_of_what_is_cached() {
    let world = cached(WIDE);
    let writer = spawn(&world, |world| world.change(&SUBJECT));
    let reader = world.ask(&SUBJECT, START);
    join(writer);
    let last = world.ask(&SUBJECT, START);
    reader.seen(&world);
    assert_eq!(last.seen(&world), Some(1));
}

/// While a subject is loaded, somebody changes it and then asks for it.
fn a_change_during_a_load() {
    let world = empty(WIDE);
    let writer = spawn(&world, |world| {
        world.change(&SUBJECT);
        world.ask(&SUBJECT, START)
    });
    let early = world.ask(&SUBJECT, START);
    let late = join(writer);
    let last = world.ask(&SUBJECT, START);
    early.seen(&world);
    assert_eq!(late.seen(&world), Some(1));
    assert_eq!(last.seen(&world), Some(1));
}

/// Two clients change the same subject, and each asks for it then.
fn two_changes() {
    let world = cached(WIDE);
    let other = spawn(&world, |world| {
        world.change(&SUBJECT);
        world.ask(&SUBJECT, START)
    });
    world.change(&SUBJECT);
    let one = world.ask(&SUBJECT, START);
    let other = join(other);
    let last = world.ask(&SUBJECT, START);
    one.seen(&world);
    other.seen(&world);
    assert_eq!(last.seen(&world), Some(2));
}

/// One changes a subject, and two ask for it.
fn two_readers(limits: Limits) {
    let world = empty(limits);
    let writer = spawn(&world, |world| world.change(&SUBJECT));
    let other = spawn(&world, |world| world.ask(&SUBJECT, START));
    let one = world.ask(&SUBJECT, START);
    join(writer);
    let other = join(other);
    let last = world.ask(&SUBJECT, START);
    one.seen(&world);
    other.seen(&world);
    assert_eq!(last.seen(&world), Some(1));
}

fn two_readers_and_loads() {
    two_readers(WIDE);
}

fn two_readers_and_one_load() {
    two_readers(NARROW);
}

/// Two subjects share a counter, and a query asks for one of them only.
fn two_subjects() {
    let world = empty(NARROW);
    let writer = spawn(&world, |world| {
        world.change(&OTHER);
        world.ask(&SUBJECT, START)
    });
    let other = spawn(&world, |world| world.ask(&OTHER, START));
    let one = world.ask(&SUBJECT, START);
    let late = join(writer);
    let other = join(other);
    one.seen(&world);
    other.seen(&world);
    assert_eq!(late.seen(&world), Some(0));
    assert_eq!(world.ask(&OTHER, START).seen(&world), Some(1));
}

/// A subject that nobody asks for is changed while another is known.
fn a_change_of_what_is_not_known() {
    let world = cached(WIDE);
    let writer = spawn(&world, |world| world.change(&OTHER));
    let early = world.ask(&SUBJECT, START);
    join(writer);
    assert!(world.is_known(&SUBJECT), "a change of what nobody knows made others be asked again");
    assert_eq!(early.seen(&world), Some(0));
    assert_eq!(world.ask(&OTHER, START).seen(&world), Some(1));
}

/// While one subject is loaded and another is known, the other one is changed.
fn a_change_beside_a_load() {
    let world = cached(WIDE);
    let writer = spawn(&world, |world| {
        world.change(&SUBJECT);
        world.ask(&SUBJECT, START)
    });
    let other = world.ask(&OTHER, START);
    let late = join(writer);
    assert_eq!(other.seen(&world), Some(0));
    assert_eq!(late.seen(&world), Some(1));
}

/// A change is made elsewhere, and the feed may find it.
fn a_change_elsewhere() {
    let world = empty(WIDE);
    let elsewhere = spawn(&world, |world| {
        world.change_elsewhere(&SUBJECT);
    });
    let feed = spawn(&world, |world| {
        world.poll();
        world.ask(&SUBJECT, START)
    });
    let early = world.ask(&SUBJECT, START);
    join(elsewhere);
    let late = join(feed);
    world.poll();
    let last = world.ask(&SUBJECT, START);
    early.seen(&world);
    late.seen(&world);
    assert_eq!(last.seen(&world), Some(1));
}

/// The feed misses a change that was made elsewhere, and notices that it may have. It is not the first time.
fn a_doubt() {
    let world = cached(WIDE);
    world.doubt();
    let feed = spawn(&world, |world| {
        world.change_elsewhere(&SUBJECT);
        world.doubt();
        assert!(world.is_kept(&SUBJECT), "an entry did not outlive a doubt");
        world.ask(&SUBJECT, START)
    });
    let early = world.ask(&SUBJECT, START);
    let late = join(feed);
    let last = world.ask(&SUBJECT, START);
    early.seen(&world);
    assert_eq!(late.seen(&world), Some(1));
    assert_eq!(last.seen(&world), Some(1));
}

/// A subject is changed here while the feed misses a change that was made elsewhere.
fn a_change_and_a_doubt() {
    let world = empty(WIDE);
    let writer = spawn(&world, |world| {
        world.change(&SUBJECT);
        world.ask(&SUBJECT, START)
    });
    let feed = spawn(&world, |world| {
        world.change_elsewhere(&SUBJECT);
        world.doubt();
    });
    let early = world.ask(&SUBJECT, START);
    let late = join(writer);
    join(feed);
    let last = world.ask(&SUBJECT, START);
    early.seen(&world);
    late.seen(&world);
    assert_eq!(last.seen(&world), Some(2));
}

/// The database goes down, and the feed with it.
fn an_outage() {
    let world = cached(WIDE);
    let feed = spawn(&world, |world| {
        world.take_down();
        world.doubt();
        world.ask(&SUBJECT, START)
    });
    let early = world.ask(&SUBJECT, START);
    let late = join(feed);
    let last = world.ask(&SUBJECT, START);
    for request in [early, late, last] {
        assert_eq!(request.seen(&world), Some(0), "an entry did not outlive an outage");
    }
}

/// The database goes down after a change was answered.
fn an_outage_after_a_change() {
    let world = cached(WIDE);
    let writer = spawn(&world, |world| {
        world.change(&SUBJECT);
        world.take_down();
        world.ask(&SUBJECT, START)
    });
    let early = world.ask(&SUBJECT, START);
    let late = join(writer);
    early.seen(&world);
    assert_ne!(late.seen(&world), Some(0), "an entry was used in spite of a change");
}

/// Two ask for what was read too long ago.
fn old_age() {
    let world = cached(WIDE);
    world.change_elsewhere(&SUBJECT);
    let other = spawn(&world, |world| world.ask(&SUBJECT, LATER));
    let one = world.ask(&SUBJECT, LATER);
    let other = join(other);
    assert_eq!(one.seen(&world), Some(1));
    assert_eq!(other.seen(&world), Some(1));
}

#[test]
fn nobody_who_asks_after_a_change_gets_an_entry_from_before_it() {
    check(a_change_of_what_is_cached);
}

#[test]
fn nobody_who_asks_after_a_change_gets_a_load_from_before_it() {
    check(a_change_during_a_load);
}

#[test]
fn changes_by_several_are_seen_by_each() {
    check_within(4, two_changes);
}

#[test]
fn loads_at_once_answer_everybody() {
    check_within(3, two_readers_and_loads);
}

#[test]
fn one_load_after_the_other_answers_everybody() {
    check_within(3, two_readers_and_one_load);
}

#[test]
fn subjects_that_did_not_fit_into_a_query_are_in_the_next() {
    check_within(3, two_subjects);
}

#[test]
fn a_change_of_what_nobody_knows_leaves_the_others_known() {
    check(a_change_of_what_is_not_known);
}

#[test]
fn a_change_of_what_is_known_is_seen_whatever_is_loaded() {
    check(a_change_beside_a_load);
}

#[test]
fn a_change_that_the_feed_found_is_seen() {
    check_within(3, a_change_elsewhere);
}

#[test]
fn a_doubt_makes_entries_be_asked_again_and_keeps_them() {
    check_within(4, a_doubt);
}

#[test]
fn changes_and_doubts_get_along() {
    check_within(3, a_change_and_a_doubt);
}

#[test]
fn an_outage_is_lived_through_on_entries() {
    check(an_outage);
}

#[test]
fn no_outage_brings_back_what_was_changed() {
    check(an_outage_after_a_change);
}

#[test]
fn what_is_too_old_is_asked_again() {
    check(old_age);
}

#[test]
#[should_panic(expected = "an entry that counts as Current saw 0 changes of 1")]
fn telling_of_a_change_after_the_answer_is_noticed() {
    check_without(Rule::ChangesAreToldBeforeTheAnswer, a_change_of_what_is_cached);
}

#[test]
#[should_panic(expected = "an entry that counts as Current saw 0 changes of 1")]
fn taking_the_stamp_after_the_query_is_noticed_by_a_change() {
    check_without(Rule::StampComesBeforeTheQuery, a_change_during_a_load);
}

#[test]
#[should_panic(expected = "an entry that counts as Current saw 0 changes of 1")]
fn taking_the_stamp_after_the_query_is_noticed_by_a_doubt() {
    check_without(Rule::StampComesBeforeTheQuery, a_doubt);
}

#[test]
#[should_panic(expected = "older facts overwrote newer ones")]
fn overwriting_newer_facts_is_noticed_by_a_change() {
    check_without(Rule::OlderFactsDoNotOverwrite, a_change_during_a_load);
}

#[test]
#[should_panic(expected = "older facts overwrote newer ones")]
fn overwriting_newer_facts_is_noticed_by_a_doubt() {
    check_without(Rule::OlderFactsDoNotOverwrite, a_doubt);
}

#[test]
#[should_panic(expected = "an answer saw 0 changes of 1")]
fn joining_an_early_load_is_noticed_by_a_change() {
    check_without(Rule::LateReadersDoNotJoin, a_change_during_a_load);
}

#[test]
#[should_panic(expected = "an answer saw 0 changes of 1")]
fn joining_an_early_load_is_noticed_by_a_doubt() {
    check_without(Rule::LateReadersDoNotJoin, a_doubt);
}

#[test]
#[should_panic(expected = "an entry that counts as Current saw 0 changes of 1")]
fn looking_for_an_entry_before_a_load_is_noticed() {
    check_without(Rule::ChangesLookAtLoadsFirst, a_change_during_a_load);
}

#[test]
#[should_panic(expected = "an entry that counts as Current saw 0 changes of 1")]
fn a_load_that_ends_before_it_is_kept_is_noticed() {
    check_without(Rule::LoadsAreUnderWayUntilTheyAreKept, a_change_during_a_load);
}
