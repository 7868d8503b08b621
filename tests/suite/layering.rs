//! The layers: who may use whom, and what stands where. The sources are read as text, without comments, strings and
//! test modules; a path is followed through the `use` that its first word comes from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A source file.
struct Source {
    /// Its path in the repository.
    file: String,
    /// The module that it is, such as `crate::store::facts`.
    module: Vec<String>,
    /// Every path that stands in it, from the crate or the dependency on.
    paths: BTreeSet<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below a folder of the repository, sorted.
fn files(folder: &str) -> Vec<String> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    let relative = |path: PathBuf| path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
    let mut files: Vec<_> = found.into_iter().map(relative).collect();
    files.sort();
    files
}

fn sources(folder: &str) -> Vec<Source> {
    let read = |file: String| {
        let text = fs::read_to_string(root().join(&file)).expect("a file");
        let module = module(&file);
        let paths = paths(&tokens(&text), &module);
        Source { file, module, paths }
    };
    files(folder).into_iter().map(read).collect()
}

/// The module that a file is.
fn module(file: &str) -> Vec<String> {
    let (_, path) = file.split_once("src/").expect("a source file");
    let path = path.strip_suffix(".rs").expect("a Rust file");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let inner = path.split('/').filter(|part| !["lib", "main"].contains(part));
    std::iter::once("crate").chain(inner).map(str::to_owned).collect()
}

/// The words and signs of a text, up to its test module: `::` is one sign, strings and comments are none.
fn tokens(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            string(rest)
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of the raw string that a text begins with, if it does.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?.chars().take_while(|letter| *letter == '#').count();
    let content = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(2 + hashes + content.find(&end).map_or(content.len(), |at| at + end.len()))
}

/// The length of the string that a text begins with.
fn string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the character, or of the sign of the lifetime, that a text begins with.
fn character(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1);
    match letters.next() {
        Some((_, '\\')) => text[3..].find('\'').map_or(text.len(), |at| at + 4),
        Some(_) => match letters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// Every path in a text, from the crate or the dependency on.
fn paths(tokens: &[String], module: &[String]) -> BTreeSet<String> {
    let mut found: Vec<Vec<String>> = Vec::new();
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] == "use" {
            at += 1;
            let mut leaves = Vec::new();
            at = use_tree(tokens, at, &mut Vec::new(), &mut leaves);
            for (path, name) in leaves {
                let path = absolute(path, module);
                names.insert(name, path.clone());
                found.push(path);
            }
        } else if is_word(&tokens[at]) && tokens.get(at + 1).is_some_and(|sign| sign == "::") {
            let mut path = vec![tokens[at].clone()];
            while tokens.get(at + 1).is_some_and(|sign| sign == "::")
                && tokens.get(at + 2).is_some_and(|word| is_word(word))
            {
                path.push(tokens[at + 2].clone());
                at += 2;
            }
            found.push(absolute(path, module));
            at += 1;
        } else {
            at += 1;
        }
    }
    let follow = |path: Vec<String>| match names.get(&path[0]) {
        Some(start) if start[0] != path[0] => start.iter().chain(&path[1..]).cloned().collect(),
        _ => path,
    };
    // A name may come from a `use` whose own first word comes from another.
    found.into_iter().map(|path| follow(follow(path)).join("::")).collect()
}

fn is_word(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_alphabetic() || letter == '_')
}

/// Reads one tree of a `use` from `at` on: its paths, each with the name that it gives them.
fn use_tree(
    tokens: &[String],
    mut at: usize,
    prefix: &mut Vec<String>,
    leaves: &mut Vec<(Vec<String>, String)>,
) -> usize {
    let depth = prefix.len();
    loop {
        match tokens[at].as_str() {
            "{" => {
                at += 1;
                while tokens[at] != "}" {
                    at = use_tree(tokens, at, prefix, leaves);
                    if tokens[at] == "," {
                        at += 1;
                    }
                }
                at += 1;
                break;
            }
            "::" => at += 1,
            "as" => {
                if let Some((_, name)) = leaves.last_mut() {
                    tokens[at + 1].clone_into(name);
                }
                at += 2;
            }
            word if is_word(word) || word == "*" => {
                if word != "self" || prefix.is_empty() {
                    prefix.push(word.to_owned());
                }
                if tokens[at + 1] != "::" {
                    leaves.push((prefix.clone(), prefix[prefix.len() - 1].clone()));
                }
                at += 1;
            }
            _ => break,
        }
    }
    prefix.truncate(depth);
    at
}

/// A path from the crate on, where it is told from the module on.
fn absolute(path: Vec<String>, module: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|word| *word == "super").count();
    match path[0].as_str() {
        "super" => module[..module.len().saturating_sub(ups).max(1)].iter().chain(&path[ups..]).cloned().collect(),
        "self" => module.iter().chain(&path[1..]).cloned().collect(),
        "tollgate" => std::iter::once("crate".to_owned()).chain(path[1..].iter().cloned()).collect(),
        _ => path,
    }
}

/// Whether a path is one of these, or lies below one.
fn is_below(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

/// The crates that the workspace's packages depend on, as paths name them.
fn dependencies() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for manifest in ["Cargo.toml", "entity/Cargo.toml", "migration/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).expect("a manifest");
        let mut is_list = false;
        for line in text.lines() {
            if line.starts_with('[') {
                is_list = line == "[dependencies]";
            } else if is_list && let Some((name, _)) = line.split_once(['=', '.']) {
                found.insert(name.trim().replace('-', "_"));
            }
        }
    }
    found
}

#[test]
fn the_layers_use_each_other_in_one_direction() {
    let rules: [(&str, &[&str]); 9] = [
        ("domain", &["crate::domain"]),
        ("store", &["crate::store", "crate::domain"]),
        ("service", &["crate::service", "crate::store", "crate::domain"]),
        // Of the store it knows what a use case hands through: the filter of a list and its places, what was recorded, and
        // what an error was.
        (
            "http",
            &[
                "crate::http",
                "crate::service",
                "crate::domain",
                "crate::store::Error",
                "crate::store::change",
                "crate::store::subscription::After",
                "crate::store::subscription::Filter",
            ],
        ),
        (
            "config",
            &[
                "crate::config",
                "crate::domain",
                "crate::http::auth",
                "crate::http::collector",
                "crate::http::console::openid",
                "crate::http::contract",
                "crate::http::tls::Files",
                "crate::http::tls::NamedFile",
                "crate::http::transfer::Format",
                "crate::service::Policy",
            ],
        ),
        ("telemetry", &["crate::telemetry", "crate::config"]),
        ("supervisor", &["crate::supervisor"]),
        ("command", &["crate"]),
        ("main", &["crate"]),
    ];
    let mut checked = BTreeSet::new();
    for Source { file, module, paths } in sources("src") {
        let layer = module.get(1).map_or("main", String::as_str);
        if file == "src/lib.rs" {
            continue;
        }
        let (_, allowed) =
            rules.iter().find(|(name, _)| *name == layer).unwrap_or_else(|| panic!("{file} is of no layer"));
        checked.insert(layer.to_owned());
        // The module of the store itself may be named, in order to name one of the two above.
        let within = paths.iter().filter(|path| path.starts_with("crate") && *path != "crate::store");
        let wrong: Vec<_> = within.filter(|path| !is_below(path, allowed)).collect();
        assert!(wrong.is_empty(), "{file} must not use {wrong:?}");
    }
    assert_eq!(checked.len(), rules.len(), "{checked:?}");
}

#[test]
fn each_layer_keeps_to_its_own_libraries() {
    let dependencies = dependencies();
    assert!(
        ["poem", "sea_orm", "tokio", "hyper", "entity", "sea_orm_migration"]
            .iter()
            .all(|name| dependencies.contains(*name))
    );
    let web = ["poem", "poem_openapi", "hyper", "hyper_util"];
    let tables = ["sea_orm", "sqlx", "entity", "migration", "sea_orm_migration"];
    let process = ["clap", "anyhow", "tracing_subscriber"];
    let all = |lists: &[&[&str]]| -> BTreeSet<String> { lists.concat().into_iter().map(str::to_owned).collect() };
    // The value of a claim is whatever JSON can say, and no layer knows it as anything else.
    let pure = all(&[&["chrono", "jiff", "serde_json", "uuid", "thiserror"]]);
    let mut seen = BTreeSet::new();
    for Source { file, module, paths } in sources("src") {
        let first = |path: &String| path.split("::").next().unwrap_or_default().to_owned();
        let used: BTreeSet<_> = paths.iter().map(first).filter(|name| dependencies.contains(name)).collect();
        let banned = match module.get(1).map_or("main", String::as_str) {
            "domain" => used.difference(&pure).cloned().collect(),
            "store" => all(&[&web, &process, &["prometheus", "quick_cache"]]),
            "service" => all(&[&web, &process, &["entity", "migration", "sea_orm_migration", "sqlx"]]),
            "http" => all(&[&tables, &process, &["prometheus", "quick_cache"]]),
            "config" | "telemetry" | "supervisor" | "command" | "main" => all(&[&web, &tables]),
            other => panic!("{other} is of no layer"),
        };
        let wrong: Vec<_> = used.intersection(&banned).collect();
        assert!(wrong.is_empty(), "{file} must not use {wrong:?}");
        seen.extend(used);
    }
    assert!(
        ["poem", "sea_orm", "tokio", "hyper", "chrono", "clap"].iter().all(|name| seen.contains(*name)),
        "{seen:?}"
    );
    for (folder, allowed) in [("entity/src", "sea_orm"), ("migration/src", "sea_orm_migration")] {
        for Source { file, paths, .. } in sources(folder) {
            let first = |path: &String| path.split("::").next().unwrap_or_default().to_owned();
            let used: BTreeSet<_> = paths.iter().map(first).filter(|name| dependencies.contains(name)).collect();
            assert!(used.iter().all(|name| name == allowed), "{file} must not use {used:?}");
        }
    }
}

#[test]
fn one_place_reads_the_clock_and_one_the_environment() {
    let clock = ["chrono::Utc::now", "chrono::Local", "std::time::SystemTime", "uuid::Uuid::now_v7"];
    // Where temporary files go is not a setting of ours.
    let (environment, excepted) = (["std::env", "dotenvy"], ["std::env::temp_dir"]);
    let (mut clocks, mut readers) = (BTreeSet::new(), BTreeSet::new());
    for folder in ["src", "entity/src", "migration/src"] {
        for Source { file, paths, .. } in sources(folder) {
            if paths.iter().any(|path| is_below(path, &clock)) {
                clocks.insert(file.clone());
            }
            if paths.iter().any(|path| is_below(path, &environment) && !is_below(path, &excepted)) {
                readers.insert(file);
            }
        }
    }
    assert_eq!(clocks, BTreeSet::from(["src/service/clock.rs".to_owned()]));
    assert_eq!(readers, BTreeSet::from(["src/config.rs".to_owned()]));
}

#[test]
fn one_noun_has_one_file_name_in_every_layer() {
    // Beside the nouns each layer has files for what it alone knows.
    let nouns = [
        "bulk",
        "catalogue",
        "change",
        "claims",
        "decision",
        "entitlement",
        "explain",
        "facts",
        "health",
        "history",
        "idempotency",
        "subject",
        "subscription",
        "token",
    ];
    let layers: [(&str, &[&str]); 5] = [
        (
            "src/domain",
            &["additional", "external", "holdings", "life", "mod", "packed", "period", "scope", "time", "window"],
        ),
        ("src/store", &["database", "error", "image", "inspection", "lane", "mod", "schema"]),
        (
            "src/service",
            &[
                "apart", "breaker", "clock", "demo", "error", "feed", "losses", "metrics", "mod", "refusals",
                "platform", "protocol", "snapshot", "trace", "trust",
            ],
        ),
        (
            "src/http",
            &[
                "admission",
                "batch",
                "body",
                "client",
                "collector",
                "connection",
                "contract",
                "form",
                "guard",
                "headers",
                "health",
                "hook",
                "issuer",
                "jwk",
                "jwt",
                "markup",
                "mod",
                "openid",
                "page",
                "problem",
                "remembered",
                "resource",
                "router",
                "selfwake",
                "server",
                "session",
                "timeline",
                "tls",
                "transfer",
                "wire",
            ],
        ),
        ("entity/src", &["idempotency_key", "lib", "subscription_scope"]),
    ];
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (layer, others) in layers {
        for file in files(layer) {
            let name = file.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).expect("a name");
            match nouns.iter().find(|noun| **noun == name) {
                Some(noun) => {
                    found.entry(noun).or_default().insert(layer);
                }
                None => assert!(
                    others.contains(&name),
                    "{file} is named neither for a noun nor for what its layer alone knows"
                ),
            }
        }
    }
    for noun in nouns {
        let layers = found.get(noun).map_or(0, BTreeSet::len);
        assert!(layers >= 2, "{noun} stands in {layers} layer(s): is it a noun of ours?");
    }
}

#[test]
fn each_file_opens_with_what_it_is_for() {
    let all: Vec<_> = ["src", "entity/src", "migration/src", "tests"].into_iter().flat_map(files).collect();
    assert!(all.len() > 50, "{all:?}");
    for file in all {
        let text = fs::read_to_string(root().join(&file)).expect("a file");
        let first = text.lines().next().unwrap_or_default();
        assert!(first.strip_prefix("//! ").is_some_and(|words| words.len() > 8), "{file}: {first}");
    }
}

#[test]
fn the_reader_of_sources_finds_paths_and_nothing_else() {
    let text = r##"
        use std::{env, fmt::{self, Display as _}};
        use super::{Error, error::Result as Answer};
        use crate::http::wire as travel;
        // use poem::Comment;
        /* poem::Comment */
        const TEXT: &str = "poem::Text \" poem::Text";
        const RAW: &str = r#"poem::Raw " poem::Raw"#;
        fn f<'a>(c: char) -> Answer<()> { match c { '"' | '\'' => travel::g(), _ => fmt::h() }; env::var("x") }
        fn g() { sea_orm::DbErr::Custom; super::super::domain::life::Life::status(); Vec::<u8>::new() }
        #[cfg(test)]
        mod tests { use poem::Test; }
    "##;
    // As the test module of a file stands at its margin.
    let text = text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    let module: Vec<_> = ["crate", "store", "facts"].map(str::to_owned).into();
    let expected = [
        "Vec",
        "crate::domain::life::Life::status",
        "crate::http::wire",
        "crate::http::wire::g",
        "crate::store::Error",
        "crate::store::error::Result",
        "sea_orm::DbErr::Custom",
        "std::env",
        "std::env::var",
        "std::fmt",
        "std::fmt::Display",
        "std::fmt::h",
    ];
    assert_eq!(paths(&tokens(&text), &module).into_iter().collect::<Vec<_>>(), expected);
}
