//! Lives in few bytes: what a million subjects hold stays in memory.
//!
//! A scope is the length of its name, its name, the length of its lives, and its lives one after the other. A life is a
//! byte that says which of its instants there are, and these: seconds and nanoseconds, so that nothing is rounded.

use std::iter;

use chrono::{DateTime, Utc};

use super::{
    life::{Life, Term},
    scope::Scope,
    window::Window,
};

/// Appends the lives of one scope, beside each of which it stands.
pub fn write(packed: &mut Vec<u8>, of_scope: &[(Scope, Life)]) {
    let Some((scope, _)) = of_scope.first() else { return };
    let mut lives = Vec::new();
    for (_, life) in of_scope {
        write_life(&mut lives, life);
    }
    write_with_length(packed, scope.as_str().as_bytes());
    write_with_length(packed, &lives);
}

/// The lives of the scope of a name, from where some scope begins, in ascending order.
pub fn lives_of<'a>(mut packed: &'a [u8], name: &[u8]) -> impl Iterator<Item = Life> + use<'a> {
    let mut lives = loop {
        match read_scope(&mut packed) {
            Some((other, _)) if other < name => {}
            Some((other, lives)) if other == name => break lives,
            Some(_) | None => break &[],
        }
    };
    iter::from_fn(move || read_life(&mut lives))
}

/// The name of the scope that begins at a place.
pub fn name_at(packed: &[u8], place: usize) -> &[u8] {
    let mut from = packed.get(place..).unwrap_or_default();
    read_with_length(&mut from).unwrap_or_default()
}

fn write_life(packed: &mut Vec<u8>, life: &Life) {
    let Life { term, pause, canceled_at } = life;
    let window = term.window();
    let (pause_from, pause_until) = (pause.map(|pause| pause.from()), pause.and_then(|pause| pause.until()));
    let others = [window.until(), term.grace_until(), pause_from, pause_until, *canceled_at];
    packed.push(others.iter().rev().fold(0, |there, instant| there << 1 | u8::from(instant.is_some())));
    for instant in iter::once(window.from()).chain(others.into_iter().flatten()) {
        packed.extend(instant.timestamp().to_le_bytes());
        packed.extend(instant.timestamp_subsec_nanos().to_le_bytes());
    }
}

/// Bytes with their length before them, seven bits a byte, the lowest first; all but the last have the eighth one, too.
fn write_with_length(packed: &mut Vec<u8>, bytes: &[u8]) {
    let mut length = bytes.len();
    while length > 0x7F {
        packed.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    packed.push(length.to_le_bytes()[0]);
    packed.extend(bytes);
}

// What follows reads what stands above; none is the end.

fn read_scope<'a>(from: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    Some((read_with_length(from)?, read_with_length(from)?))
}

fn read_life(from: &mut &[u8]) -> Option<Life> {
    let there = *from.split_off_first()?;
    let window_from = read_instant(from)?;
    let mut others = [None; 5];
    for (bit, instant) in others.iter_mut().enumerate() {
        if there >> bit & 1 == 1 {
            *instant = Some(read_instant(from)?);
        }
    }
    let [window_until, grace_until, pause_from, pause_until, canceled_at] = others;
    let window = Window::new(window_from, window_until).ok()?;
    let pause = pause_from.map(|from| Window::new(from, pause_until)).transpose().ok()?;
    Some(Life { term: Term::new(window, grace_until).ok()?, pause, canceled_at })
}

fn read_instant(from: &mut &[u8]) -> Option<DateTime<Utc>> {
    let (seconds, nanoseconds) = (i64::from_le_bytes(read_array(from)?), u32::from_le_bytes(read_array(from)?));
    DateTime::from_timestamp(seconds, nanoseconds)
}

fn read_with_length<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = *from.split_off_first()?;
        length |= usize::from(byte & 0x7F).checked_shl(shift)?;
        if byte <= 0x7F {
            return from.split_off(..length);
        }
        shift += 7;
    }
}

fn read_array<const LENGTH: usize>(from: &mut &[u8]) -> Option<[u8; LENGTH]> {
    let (array, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_comes_out_as_it_went_in() {
        let instant = |text: &str| text.parse::<DateTime<Utc>>().expect(text);
        // The first and the last there are, either side of 1970, the finest parts of a second, a leap second.
        let mut instants = vec![DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC];
        instants.extend(
            [
                "0001-01-01T00:00:00Z",
                "1969-12-31T23:59:59.999999999Z",
                "1970-01-01T00:00:00Z",
                "2016-12-31T23:59:60.5Z",
            ]
            .map(instant),
        );
        instants.extend(["2026-11-22T18:00:00.000001Z", "2026-11-22T18:00:00.000000001Z"].map(instant));
        instants.sort_unstable();
        let scope = Scope::parse("x").expect("a scope");
        let mut all = Vec::new();
        for (place, from) in instants.iter().enumerate() {
            let later: Vec<_> = instants[place + 1..].iter().copied().map(Some).chain([None]).collect();
            for until in &later {
                let window = Window::new(*from, *until).expect("a window");
                for grace_until in &later {
                    let Ok(term) = Term::new(window, *grace_until) else { continue };
                    for pause in [None, Some(window)] {
                        for canceled_at in instants.iter().copied().map(Some).chain([None]) {
                            all.push((scope.clone(), Life { term, pause, canceled_at }));
                        }
                    }
                }
            }
        }
        assert!(all.len() > 1000);
        for one in &all {
            let mut packed = Vec::new();
            write(&mut packed, std::slice::from_ref(one));
            assert_eq!(lives_of(&packed, b"x").collect::<Vec<_>>(), [one.1]);
        }
        let mut packed = Vec::new();
        write(&mut packed, &all);
        assert!(lives_of(&packed, b"x").eq(all.iter().map(|(_, life)| *life)));
    }

    #[test]
    fn what_is_cut_off_ends_where_it_is_cut() {
        let life = Life::from(Window::new(DateTime::UNIX_EPOCH, Some(DateTime::<Utc>::MAX_UTC)).expect("a window"));
        let mut packed = Vec::new();
        for name in ["a", "b"] {
            write(
                &mut packed,
                &[(Scope::parse(name).expect("a scope"), life), (Scope::parse(name).expect("it"), life)],
            );
        }
        for length in 0..packed.len() {
            let cut = &packed[..length];
            assert!(lives_of(cut, b"a").all(|found| found == life), "{length}");
            assert_eq!(lives_of(cut, b"b").count(), 0, "{length}");
        }
        assert_eq!(lives_of(&packed, b"b").count(), 2);
        assert_eq!(name_at(&packed, packed.len() / 2), b"b");
        assert_eq!(name_at(&packed, packed.len() + 1), b"");
    }
}
