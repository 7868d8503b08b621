//! The catalogue: the scopes that are managed, and the rule for each.

use std::{collections::HashMap, fmt};

use chrono::{DateTime, Utc};

use super::scope::Scope;

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
}

impl CatalogueScope {
    /// Changes it. A patch that sets what is there already leaves it, its version too, as it was.
    #[must_use]
    pub fn patch(self, patch: CatalogueScopePatch, now: DateTime<Utc>) -> Self {
        let CatalogueScopePatch { description, requires, enforced } = patch;
        let changed = Self {
            description: description.unwrap_or_else(|| self.description.clone()),
            requires: requires.unwrap_or(self.requires),
            enforced: enforced.unwrap_or(self.enforced),
            ..self.clone()
        };
        if changed == self {
            return self;
        }
        Self { version: self.version + 1, updated_at: now, ..changed }
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
pub struct Catalogue(HashMap<Scope, Rule>);

impl Catalogue {
    /// The rule of a scope; none when it is unmanaged, or no scope token at all.
    #[must_use]
    pub fn rule(&self, scope: &str) -> Option<Rule> {
        self.0.get(scope).copied()
    }

    /// How many scopes are managed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no scope is managed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The managed scopes, in ascending order.
    #[must_use]
    pub fn scopes(&self) -> Vec<Scope> {
        let mut scopes: Vec<_> = self.0.keys().cloned().collect();
        scopes.sort_unstable();
        scopes
    }
}

impl FromIterator<(Scope, Rule)> for Catalogue {
    fn from_iter<I: IntoIterator<Item = (Scope, Rule)>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}
