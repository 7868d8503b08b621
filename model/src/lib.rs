//! The cache's protocol under a model checker.
//!
//! The tests compile `src/service/cache/protocol.rs` itself, on the locks and atomics of loom, which runs a small world
//! over and over, each time with another interleaving of its threads, until none is left. Where there are too many, it
//! runs those in which threads that could go on are interrupted a few times at most. In none of them
//!
//! - does a request see facts from before a change that was answered, found or doubted by the feed before the request
//!   began; nor, while the database is down, from before one that was answered or found;
//! - does an entry go away because of a doubt;
//! - is an entry overwritten by one of an older stamp;
//! - is a request left waiting, or answered twice.
//!
//! For each rule that this rests on, a test breaks it and expects the checker to find what comes of it.
//!
//! Not shown is that the service's map, tasks and channels do what their stand-ins do here. And facts are older if
//! their stamp is: of two loads at once, the one that began first may read a change that nobody was told of yet, and be
//! overwritten by the other, which did not read it. Once the change is told, neither is used.

#[cfg(test)]
mod platform;
#[cfg(test)]
#[expect(clippy::modulo_one, reason = "there is one stripe here")]
#[path = "../../src/service/cache/protocol.rs"]
mod protocol;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
