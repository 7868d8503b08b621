//! What is measured, row by row.

use std::pin::Pin;

use crate::{ground::Ground, report::Report};

pub mod ladder;

/// The users that cached rows ask for.
pub const USERS: usize = 512;

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Report>> + 'a>>;

/// What is measured together.
pub struct Row {
    /// Its name, as an argument.
    pub name: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// Measures it.
    pub run: for<'a> fn(&'a Ground) -> Running<'a>,
}

/// All rows.
pub const ROWS: [Row; 1] = [Row {
    name: "LADDER",
    title: "hook requests answered from the cache, with authentication, metrics and logs, against servers that do less",
    run: |ground| Box::pin(ladder::ladder(ground)),
}];
