//! What the documents say of tests, of each other and of the command line: a claim is only worth something while what it
//! names is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use tollgate::config::command_line;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents, by their paths from the root.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for folder in ["", "docs"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).expect("a document");
                found.insert(path.strip_prefix(root()).expect("below the root").to_owned(), text);
            }
        }
    }
    assert!(found.len() > 10, "{:?}", found.keys());
    found
}

/// A document's lines, each with whether it is in a block of code, and of which language.
fn lines(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut block = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
        } else {
            found.push((block, line));
        }
    }
    assert_eq!(block, None, "a block of code that does not end");
    found
}

/// What a heading is called in links.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| line.starts_with('#').then(|| anchor(line.trim_start_matches('#').trim()));
    lines(text).into_iter().filter(|(block, _)| block.is_none()).filter_map(|(_, line)| heading(line)).collect()
}

/// The targets of a text's links.
fn targets(text: &str) -> Vec<String> {
    let prose: Vec<_> = lines(text).into_iter().filter(|(block, _)| block.is_none()).map(|(_, line)| line).collect();
    let prose = prose.join("\n");
    let after = prose.split("](").skip(1);
    after.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let documents = documents();
    let mut count = 0;
    for (path, text) in &documents {
        for target in targets(text) {
            if target.starts_with("https://") || target.starts_with("http://") {
                continue;
            }
            count += 1;
            let (file, heading) =
                target.split_once('#').map_or((&*target, None), |(file, heading)| (file, Some(heading)));
            let there = if file.is_empty() {
                root().join(path)
            } else {
                root().join(path).parent().expect("a folder").join(file)
            };
            assert!(there.exists(), "{}: {target} is not there", path.display());
            if let Some(heading) = heading {
                let text = fs::read_to_string(&there).expect("a document");
                assert!(anchors(&text).contains(heading), "{}: {target} has no such heading", path.display());
            }
        }
    }
    assert!(count > 40, "{count}");
    let start = fs::read_to_string(root().join("docs/README.md")).expect("the start");
    for path in documents.keys().filter(|path| path.starts_with("docs") && !path.ends_with("README.md")) {
        let name = path.file_name().expect("a name").to_string_lossy();
        assert!(start.contains(&format!("]({name}")), "docs/README.md does not lead to {name}");
    }
}

#[test]
fn the_reader_of_links_finds_what_leads_nowhere() {
    assert_eq!(anchor("What `tollgate check --data` looks at"), "what-tollgate-check---data-looks-at");
    let text = "# One\n[a](b.md#c) and\n[d\ne](f)\n```sh\n[not](this)\n# nor this\n```\n## Two words";
    assert_eq!(targets(text), ["b.md#c", "f"]);
    assert_eq!(anchors(text), BTreeSet::from(["one".to_owned(), "two-words".to_owned()]));
}

/// The words of a command from `tollgate` on, up to where the shell begins another one.
fn calls(line: &str) -> Vec<Vec<&str>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_call = |word: &str| word == "tollgate" || word.ends_with("/tollgate");
    let call = |at: usize| {
        let rest = words[at + 1..].iter().copied();
        rest.take_while(|word| !matches!(*word, "&&" | "|" | "#" | ">" | "\\") && !word.starts_with('#')).collect()
    };
    (0..words.len()).filter(|at| is_call(words[*at])).map(call).collect()
}

#[test]
fn every_command_and_setting_in_the_documents_is_one_of_the_command_line() {
    let mut line = command_line();
    line.build();
    let mut count = 0;
    let mut settings = String::new();
    let mut collect = vec![line.clone()];
    while let Some(mut command) = collect.pop() {
        settings += &command.render_long_help().to_string();
        collect.extend(command.get_subcommands().cloned());
    }
    for (path, text) in documents() {
        for (block, told) in lines(&text) {
            if matches!(block, Some("sh" | "console")) {
                for call in calls(told) {
                    let mut command = &line;
                    for word in call {
                        if let Some(flag) = word.strip_prefix("--") {
                            let name = flag.split('=').next().unwrap_or_default();
                            let is_known = command.get_arguments().any(|argument| argument.get_long() == Some(name));
                            assert!(is_known, "{}: `{}` has no --{name}", path.display(), command.get_name());
                            count += 1;
                        } else if let Some(deeper) = command.find_subcommand(word) {
                            command = deeper;
                            count += 1;
                        }
                    }
                }
            }
            let words = told.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
            for name in words.filter(|word| word.starts_with("TOLLGATE_") && word.len() > "TOLLGATE_".len()) {
                let secret = name.strip_suffix("_FILE").unwrap_or(name);
                let is_known = settings.contains(name) || settings.contains(secret);
                assert!(is_known, "{}: no help tells of {name}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn every_test_that_the_notes_on_security_name_is_there() {
    let notes = fs::read_to_string(root().join("docs/security.md")).expect("the notes");
    let quoted = notes.split('`').skip(1).step_by(2);
    let named: BTreeSet<_> =
        quoted.filter_map(|text| text.split_once("::")).filter(|(_, test)| *test != "test").collect();
    assert!(named.len() >= 20, "{named:?}");
    for (module, test) in named {
        let source = fs::read_to_string(root().join(format!("tests/suite/{module}.rs"))).expect(module);
        assert!(source.contains(&format!("fn {test}(")), "{module}::{test} is not there");
    }
}
