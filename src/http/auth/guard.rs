//! Who guesses: failed attempts are counted by where they come from and by the name that they try.
//!
//! A credential is checked first and always, so nobody's failures lock anybody else out, and nobody's guesses become
//! slower: what protects a secret is its length. Who guesses is told to stop, is counted, and does not flood the log.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use poem::http::{HeaderMap, HeaderName};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Guessers that are counted at once. When there are more, they share one count: memory is bounded, and so many at
/// once are one attack.
const MAX_COUNTED: usize = 16 * 1024;
/// How often those whose count is back at nothing are looked for, when there is no room: it takes a moment.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Bits of an IPv6 address that one source cannot choose among.
const IPV6_PREFIX_BITS: u32 = 64;

/// How many failures are let pass.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// At once: a person's typing errors, or a deployment's first minute with an old password.
    pub burst: u32,
    /// After which time one more.
    pub refill: Duration,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { burst: 20, refill: Duration::from_secs(3) }
    }
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt<'a> {
    /// A secret that may have been guessed, for this name.
    Secret(Option<&'a str>),
    /// Anything else: nothing that is gained by trying again.
    Other,
}

/// What is made of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// How long to wait before the next attempt; zero while there were not too many.
    pub pause: Duration,
    /// Whether there is still room in the log for where it came from.
    pub is_heard: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Guesser {
    Source(IpAddr),
    Name(u64),
    /// Where failures come from that are no guesses.
    Stray(IpAddr),
    /// Everybody for whom there is no room.
    Others,
}

/// Counts failures.
#[derive(Debug, Default)]
pub struct Guard {
    allowance: Allowance,
    proxies: Vec<IpNet>,
    hasher: RandomState,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// When each guesser's count will be back at nothing.
    clear_at: HashMap<Guesser, Instant>,
    /// When those that are back at nothing were last thrown out.
    swept_at: Option<Instant>,
}

impl Guard {
    /// A guard that believes what these proxies say of where a request comes from.
    #[must_use]
    pub fn new(allowance: Allowance, proxies: Vec<IpNet>) -> Self {
        Self { allowance, proxies, ..Self::default() }
    }

    /// Where a request comes from: the peer, or the last address that its proxies of ours saw.
    pub fn source(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let mut source = peer?.to_canonical();
        if !self.is_proxy(source) {
            return Some(source);
        }
        let lines = headers.get_all(X_FORWARDED_FOR).into_iter().rev();
        // Each proxy adds at the end, so what is left of the first stranger is that stranger's word.
        for hop in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
            let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| address(hop.trim())) else { break };
            source = address;
            if !self.is_proxy(source) {
                break;
            }
        }
        Some(source)
    }

    /// Whether a proxy of ours says that what came to it came over TLS.
    pub fn is_forwarded_tls(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
        let is_ours = peer.is_some_and(|peer| self.is_proxy(peer.to_canonical()));
        let mut lines = headers.get_all(X_FORWARDED_PROTO).into_iter();
        // Of several words the first one is the browser's side; one that says several things is not believed.
        is_ours && lines.next().is_some_and(|line| line == "https") && lines.next().is_none()
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|proxies| proxies.contains(&address))
    }

    /// Counts a failure.
    pub fn fail(&self, source: Option<IpAddr>, attempt: Attempt<'_>, now: Instant) -> Verdict {
        let source = source.map(network);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pause = |guesser| counts.add(guesser, self.allowance, now);
        let of_source = source.map_or(Duration::ZERO, |source| match attempt {
            Attempt::Secret(_) => pause(Guesser::Source(source)),
            Attempt::Other => pause(Guesser::Stray(source)),
        });
        let is_heard = of_source.is_zero();
        let of_name = match attempt {
            // A source that has failed too often makes no name fail.
            Attempt::Secret(Some(name)) if is_heard => pause(Guesser::Name(self.hasher.hash_one(name))),
            Attempt::Secret(_) | Attempt::Other => Duration::ZERO,
        };
        Verdict { pause: of_source.max(of_name), is_heard }
    }
}

impl Counts {
    /// Counts a failure of one guesser, as a leaky bucket that holds `burst` and loses one each `refill`; how long until
    /// there is room, when it is full.
    fn add(&mut self, guesser: Guesser, Allowance { burst, refill }: Allowance, now: Instant) -> Duration {
        let guesser = if self.has_room_for(guesser, now) { guesser } else { Guesser::Others };
        let clear_at = self.clear_at.entry(guesser).or_insert(now);
        let next = (*clear_at).max(now) + refill;
        let pause = next.saturating_duration_since(now + refill * burst);
        if pause.is_zero() {
            *clear_at = next;
        }
        pause
    }

    fn has_room_for(&mut self, guesser: Guesser, now: Instant) -> bool {
        let is_sweep_due = self.swept_at.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP_INTERVAL);
        if self.clear_at.len() >= MAX_COUNTED && is_sweep_due {
            self.clear_at.retain(|_, clear_at| *clear_at > now);
            self.swept_at = Some(now);
        }
        self.clear_at.len() < MAX_COUNTED || self.clear_at.contains_key(&guesser)
    }
}

/// What one source cannot choose among: an IPv4 address, or an IPv6 network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> IPV6_PREFIX_BITS << IPV6_PREFIX_BITS).into(),
    }
}

/// An address as proxies write it: some add the port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn guard(proxies: &[&str]) -> Guard {
        let allowance = Allowance { burst: 3, refill: Duration::from_secs(10) };
        Guard::new(allowance, proxies.iter().map(|proxies| proxies.parse().expect("a network")).collect())
    }

    fn secret(name: &str) -> Attempt<'_> {
        Attempt::Secret(Some(name))
    }

    #[test]
    fn a_source_is_what_our_own_proxies_saw() {
        let check = |peer: &str, forwarded: &[&str], expected: &str| {
            let lines = forwarded.iter().map(|line| (X_FORWARDED_FOR, line.parse().expect("a value")));
            let mut headers = HeaderMap::new();
            lines.for_each(|(name, value)| {
                headers.append(name, value);
            });
            let guard = guard(&["10.0.0.0/8", "::1/128"]);
            assert_eq!(guard.source(Some(ip(peer)), &headers), Some(ip(expected)), "{peer} {forwarded:?}");
        };
        check("192.0.2.1", &[], "192.0.2.1");
        check("192.0.2.1", &["198.51.100.7"], "192.0.2.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("::ffff:10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("::1", &["2001:db8::7"], "2001:db8::7");
        check("10.0.0.1", &["203.0.113.9, 198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7");
        check("10.0.0.1", &["203.0.113.9", "198.51.100.7,10.0.0.2"], "198.51.100.7");
        check("10.0.0.1", &["198.51.100.7:1234"], "198.51.100.7");
        check("10.0.0.1", &["[2001:db8::7]:1234"], "2001:db8::7");
        check("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7");
        check("10.0.0.1", &["198.51.100.7, unknown"], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.7, "], "10.0.0.1");
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        assert_eq!(guard(&[]).source(None, &HeaderMap::new()), None);
        let mut headers = HeaderMap::new();
        for line in [&b"198.51.100.7"[..], b"203.0.113.9, \xff"] {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).expect("a value"));
        }
        let proxy = Some(ip("10.0.0.1"));
        assert_eq!(
            guard(&["10.0.0.0/8"]).source(proxy, &headers),
            proxy,
            "what stands before nonsense is not believed"
        );
    }

    #[test]
    fn failures_are_counted_by_source_and_by_name() {
        let (guard, start) = (guard(&[]), Instant::now());
        let fail = |source, attempt, now| guard.fail(source, attempt, now).pause.as_secs();
        let after = |seconds| start + Duration::from_secs(seconds);
        let (here, there) = (Some(ip("192.0.2.1")), Some(ip("192.0.2.2")));
        for _ in 0..3 {
            assert_eq!(fail(here, secret("a"), start), 0);
        }
        assert_eq!(fail(here, secret("b"), start), 10, "the source has failed too often");
        for _ in 0..10 {
            let Verdict { pause, is_heard } = guard.fail(here, secret("z"), start);
            assert!(!pause.is_zero() && !is_heard);
        }
        assert_eq!(fail(there, secret("z"), start), 0, "who has failed too often makes no name fail");
        let Verdict { pause, is_heard } = guard.fail(there, secret("a"), start);
        assert_eq!(
            (pause.as_secs(), is_heard),
            (10, true),
            "the name was tried too often, and the log tells from where"
        );
        assert_eq!(fail(there, secret("c"), start), 0);
        assert_eq!(fail(here, Attempt::Secret(None), after(9)), 1);
        assert_eq!(fail(here, Attempt::Secret(None), after(10)), 0, "one more after a while");
        assert_eq!(fail(here, Attempt::Secret(None), after(10)), 10);
        assert_eq!(fail(here, Attempt::Other, after(10)), 0, "what is no guess is counted apart");
        assert_eq!(fail(None, Attempt::Secret(None), start), 0, "nobody is counted for what has no source");
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_source() {
        let (guard, now) = (guard(&[]), Instant::now());
        for host in 0..3 {
            assert_eq!(
                guard.fail(Some(ip(&format!("2001:db8::{host}"))), Attempt::Secret(None), now).pause,
                Duration::ZERO
            );
        }
        assert!(guard.fail(Some(ip("2001:db8::ffff")), Attempt::Secret(None), now).pause > Duration::ZERO);
        assert_eq!(guard.fail(Some(ip("2001:db8:0:1::1")), Attempt::Secret(None), now).pause, Duration::ZERO);
    }

    #[test]
    fn what_is_counted_is_bounded_and_a_newcomer_finds_room_again() {
        let (guard, now) = (guard(&[]), Instant::now());
        for number in 0..u32::try_from(2 * MAX_COUNTED).expect("small") {
            let _ = guard.fail(Some(IpAddr::V4(number.into())), Attempt::Secret(None), now);
        }
        assert_eq!(guard.counts.lock().expect("no panic").clear_at.len(), MAX_COUNTED + 1);
        let newcomer = Some(ip("203.0.113.1"));
        assert!(
            guard.fail(newcomer, Attempt::Secret(None), now).pause > Duration::ZERO,
            "it shares a count with thousands"
        );
        assert_eq!(guard.fail(newcomer, Attempt::Secret(None), now + Duration::from_mins(1)).pause, Duration::ZERO);
        assert_eq!(guard.counts.lock().expect("no panic").clear_at.len(), 1);
    }
}
