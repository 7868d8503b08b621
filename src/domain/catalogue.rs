//! The catalogue: the scopes that are managed, and the rule for each.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use chrono::{DateTime, Utc};

use super::{
    claims::{Claims, ClaimsPatch, TooLarge},
    scope::Scope,
};

/// The longest description of a catalogue scope, in characters.
pub const MAX_DESCRIPTION_LENGTH: usize = 1024;

/// Who must hold a subscription for a scope to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Requires {
    /// The user.
    User,
    /// The client.
    Client,
    /// The user or the client; one is enough.
    #[default]
    Any,
    /// The user and the client, both.
    All,
}

impl Requires {
    /// Every rule.
    pub const ALL: [Self; 4] = [Self::User, Self::Client, Self::Any, Self::All];

    /// The word for the rule in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Client => "client",
            Self::Any => "any",
            Self::All => "all",
        }
    }

    /// The rule that a word stands for.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == word)
    }
}

/// Free text about a catalogue scope, for people.
///
/// Invariant: at most [`MAX_DESCRIPTION_LENGTH`] characters, without U+0000.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description(String);

/// The text is too long, or holds U+0000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a description has at most {MAX_DESCRIPTION_LENGTH} characters and no U+0000")]
pub struct InvalidDescription;

impl Description {
    /// Takes a text as description.
    ///
    /// # Errors
    ///
    /// [`InvalidDescription`] when it is too long or holds U+0000.
    pub fn parse(text: String) -> Result<Self, InvalidDescription> {
        if text.chars().count() <= MAX_DESCRIPTION_LENGTH && !text.contains('\0') {
            Ok(Self(text))
        } else {
            Err(InvalidDescription)
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A scope under subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueScope {
    /// Its name, which never changes.
    pub name: Scope,
    /// What it stands for, in words.
    pub description: Option<Description>,
    /// Who must hold it.
    pub requires: Requires,
    /// Whether it is taken away from those who do not hold it. While false it is decided, counted and kept.
    pub enforced: bool,
    /// What a token is told while it is held.
    pub claims: Claims,
    /// Counts its changes, from 1.
    pub version: i64,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// What a change of a catalogue scope sets; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogueScopePatch {
    /// The new description: `Some(None)` takes it away.
    pub description: Option<Option<Description>>,
    /// Who must hold it from now on.
    pub requires: Option<Requires>,
    /// Whether it is enforced from now on.
    pub enforced: Option<bool>,
    /// The change of its claims.
    pub claims: Option<ClaimsPatch>,
}

impl CatalogueScope {
    /// Changes it. A patch that sets what is there already leaves it, its version too, as it was.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when its claims would be.
    pub fn patch(self, patch: CatalogueScopePatch, now: DateTime<Utc>) -> Result<Self, TooLarge> {
        let CatalogueScopePatch { description, requires, enforced, claims } = patch;
        let claims = claims.map(|claims| self.claims.patched(claims)).transpose()?;
        let changed = Self {
            description: description.unwrap_or_else(|| self.description.clone()),
            requires: requires.unwrap_or(self.requires),
            enforced: enforced.unwrap_or(self.enforced),
            claims: claims.unwrap_or_else(|| self.claims.clone()),
            ..self.clone()
        };
        if changed == self {
            return Ok(self);
        }
        Ok(Self { version: self.version + 1, updated_at: now, ..changed })
    }
}

/// The rule of one managed scope: all of it that a decision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Who must hold it.
    pub requires: Requires,
    /// Whether it is taken away from those who do not.
    pub enforced: bool,
}

/// The managed scopes and their rules. A scope that is not in it is unmanaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Ordered, because a few comparisons find a rule sooner than a hash that nobody can collide.
    rules: BTreeMap<Scope, Rule>,
    /// Of those scopes that have any, which are few.
    claims: HashMap<Scope, Claims>,
}

impl Catalogue {
    /// The rule of a scope; none when it is unmanaged, or no scope token at all.
    #[must_use]
    pub fn rule(&self, scope: &str) -> Option<Rule> {
        self.rules.get(scope).copied()
    }

    /// The same rules, with the claims of scopes that have any.
    #[must_use]
    pub fn with_claims(self, claims: HashMap<Scope, Claims>) -> Self {
        Self { claims, ..self }
    }

    /// The claims of a scope; none when it has none, or is unmanaged.
    #[must_use]
    pub fn claims(&self, scope: &str) -> Option<&Claims> {
        self.claims.get(scope)
    }

    /// The same scopes, all of them enforced and without claims: what to go by when their rules are not known.
    #[must_use]
    pub fn enforced(&self) -> Self {
        self.rules.iter().map(|(scope, rule)| (scope.clone(), Rule { enforced: true, ..*rule })).collect()
    }

    /// How many scopes are managed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether no scope is managed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The managed scopes, in ascending order.
    #[must_use]
    pub fn scopes(&self) -> Vec<Scope> {
        self.rules.keys().cloned().collect()
    }
}

impl FromIterator<(Scope, Rule)> for Catalogue {
    fn from_iter<I: IntoIterator<Item = (Scope, Rule)>>(rules: I) -> Self {
        Self { rules: rules.into_iter().collect(), claims: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn description(text: &str) -> Description {
        Description::parse(text.to_owned()).expect("a description")
    }

    #[test]
    fn a_description_has_at_most_1024_characters_not_bytes() {
        let check = |text: String, ok| assert_eq!(Description::parse(text.clone()).is_ok(), ok, "{text:?}");
        check(String::new(), true);
        check("x".repeat(1024), true);
        check("x".repeat(1025), false);
        check("🎫".repeat(1024), true);
        check("🎫".repeat(1025), false);
    }

    #[test]
    fn only_the_null_character_is_refused_in_a_description() {
        for text in ["\0", "a\0", "\0a"] {
            assert_eq!(Description::parse(text.to_owned()), Err(InvalidDescription), "{text:?}");
        }
        for text in [" ", "a\nb", "<b>\"'\\", "\u{1b}[31m", "e\u{301}"] {
            assert_eq!(description(text).as_str(), text);
            assert_eq!(description(text).to_string(), text);
        }
    }

    #[test]
    fn a_word_names_each_rule_and_either_is_the_default() {
        let check = |word, rule: Option<Requires>| assert_eq!(Requires::parse(word), rule, "{word:?}");
        check("user", Some(Requires::User));
        check("client", Some(Requires::Client));
        check("any", Some(Requires::Any));
        check("all", Some(Requires::All));
        check("All", None);
        check("", None);
        assert_eq!(Requires::ALL.map(Requires::as_str), ["user", "client", "any", "all"]);
        assert_eq!(Requires::default(), Requires::Any);
    }

    #[test]
    fn a_patch_sets_what_it_names_and_counts_only_a_change() {
        let scope = |(text, requires, enforced, tier): (Option<&str>, Requires, bool, &str), version| CatalogueScope {
            name: Scope::parse("x").expect("a scope"),
            description: text.map(description),
            requires,
            enforced,
            claims: Claims::from_json(tier).expect(tier),
            version,
            created_at: at(1),
            updated_at: at(version),
        };
        let mut states = Vec::new();
        for text in [None, Some("one"), Some("other")] {
            for rule in Requires::ALL {
                states.extend([(text, rule, false, "{}"), (text, rule, true, r#"{"x:tier":"gold"}"#)]);
            }
        }
        // From every state to every state, with every choice of the members that the patch names.
        for (before, target) in states.iter().flat_map(|before| states.iter().map(move |target| (*before, *target))) {
            for named in 0..16 {
                let [text, rule, switch, tier] = [1, 2, 4, 8].map(|bit| named & bit != 0);
                let patch = CatalogueScopePatch {
                    description: text.then(|| target.0.map(description)),
                    requires: rule.then_some(target.1),
                    enforced: switch.then_some(target.2),
                    claims: tier.then(|| {
                        let claims = Claims::from_json(target.3).expect(target.3);
                        if claims.is_empty() { ClaimsPatch::Clear } else { ClaimsPatch::Merge(claims.to_map()) }
                    }),
                };
                let after = (
                    if text { target.0 } else { before.0 },
                    if rule { target.1 } else { before.1 },
                    if switch { target.2 } else { before.2 },
                    if tier { target.3 } else { before.3 },
                );
                let version = if after == before { 7 } else { 8 };
                assert_eq!(
                    scope(before, 7).patch(patch.clone(), at(8)),
                    Ok(scope(after, version)),
                    "{before:?} {patch:?}"
                );
            }
        }
    }

    #[test]
    fn a_scope_is_managed_when_its_exact_name_is_registered() {
        let rule = |requires, enforced| Rule { requires, enforced };
        let rules = [
            ("b", rule(Requires::User, true)),
            ("B", rule(Requires::All, false)),
            ("a", rule(Requires::Client, true)),
            ("ab", rule(Requires::Any, false)),
        ];
        let catalogue: Catalogue =
            rules.into_iter().map(|(name, rule)| (Scope::parse(name).expect(name), rule)).collect();
        for (name, rule) in rules {
            assert_eq!(catalogue.rule(name), Some(rule), "{name}");
        }
        for name in ["", " ", "A", "a ", "abc", "\"", "🎫"] {
            assert_eq!(catalogue.rule(name), None, "{name:?}");
        }
        let names = catalogue.scopes();
        assert_eq!(names.iter().map(Scope::as_str).collect::<Vec<_>>(), ["B", "a", "ab", "b"]);
        assert_eq!((catalogue.len(), catalogue.is_empty()), (4, false));
        assert_eq!((Catalogue::default().len(), Catalogue::default().is_empty()), (0, true));
    }
}
