//! What is made from the definition of the command line: the man pages, the completion of bash, and the file of settings
//! that the package installs. The files are what the code makes, and say what `--help` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use clap::Arg;
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use tollgate::config;

/// The section of the manual that programs stand in.
const SECTION: &str = "1";
/// How wide a line of the file of settings is at most.
const WIDTH: usize = 100;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The command line, with the names that its parts have in it.
fn command_line() -> clap::Command {
    let mut command = config::command_line().disable_help_subcommand(true);
    command.build();
    command
}

/// A command and those below it, each with its words, such as `token create`.
fn commands(command: &clap::Command) -> Vec<(Vec<String>, clap::Command)> {
    fn collect(words: &[String], command: &clap::Command, found: &mut Vec<(Vec<String>, clap::Command)>) {
        found.push((words.to_vec(), command.clone()));
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            let words: Vec<_> = words.iter().cloned().chain([below.get_name().to_owned()]).collect();
            collect(&words, below, found);
        }
    }
    let mut found = Vec::new();
    collect(&[], command, &mut found);
    found
}

/// The name of the page of a command, such as `tollgate-token-create`.
fn page_name(words: &[String]) -> String {
    std::iter::once("tollgate").chain(words.iter().map(String::as_str)).collect::<Vec<_>>().join("-")
}

/// The notes below the help of a command: paragraphs, and settings with what they are.
struct Notes {
    paragraphs: Vec<String>,
    settings: Vec<(String, String)>,
}

impl Notes {
    /// A setting is a line that is indented by two blanks and begins with its name; lines below it that are indented
    /// further go on with it.
    fn of(command: &clap::Command) -> Self {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (mut paragraphs, mut settings) = (Vec::<String>::new(), Vec::<(String, String)>::new());
        let mut is_within = false;
        for line in text.lines() {
            let is_setting = line.strip_prefix("  ").is_some_and(|rest| rest.starts_with("TOLLGATE_"));
            if is_setting {
                let (name, what) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
                settings.push((name.to_owned(), what.trim().to_owned()));
                is_within = false;
            } else if line.starts_with("    ")
                && let Some((_, what)) = settings.last_mut()
            {
                append(what, line.trim());
            } else if line.trim().is_empty() {
                is_within = false;
            } else if is_within && let Some(paragraph) = paragraphs.last_mut() {
                append(paragraph, line.trim());
            } else {
                paragraphs.push(line.trim().to_owned());
                is_within = true;
            }
        }
        Self { paragraphs, settings }
    }
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(more);
}

/// The variable that an option is read from, too.
fn variable(argument: &Arg) -> Option<String> {
    argument.get_env().map(|name| name.to_string_lossy().into_owned())
}

/// What an option is when nobody says anything; nothing when it is nothing then.
fn default(argument: &Arg) -> String {
    let values: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    values.join(",")
}

/// The page of a command.
fn page(words: &[String], command: &clap::Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let name = page_name(words);
    let described = command.clone().override_usage(usage).display_name(name.clone());
    let man = Man::new(described)
        .title(name.to_uppercase())
        .section(SECTION)
        .source(concat!("Tollgate ", env!("CARGO_PKG_VERSION")))
        .manual("Tollgate");
    let mut page = Vec::new();
    let into = &mut page;
    man.render_title(into).expect("written");
    man.render_name_section(into).expect("written");
    man.render_synopsis_section(into).expect("written");
    man.render_description_section(into).expect("written");
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(into).expect("written");
    }
    if command.has_subcommands() {
        man.render_subcommands_section(into).expect("written");
    }
    let mut rest = Roff::new();
    let notes = Notes::of(command);
    environment(&mut rest, command, &notes.settings);
    if !notes.paragraphs.is_empty() {
        rest.control("SH", ["NOTES"]);
        for (index, paragraph) in notes.paragraphs.iter().enumerate() {
            if index > 0 {
                rest.control("PP", []);
            }
            rest.text([roman(paragraph)]);
        }
    }
    rest.control("SH", ["EXIT STATUS"]);
    rest.text([roman("0 when it was done, 2 when the arguments make no sense, 1 when anything else is in the way.")]);
    rest.control("SH", ["SEE ALSO"]);
    rest.text([roman(see_also(words))]);
    page.extend(rest.render().into_bytes());
    let page = String::from_utf8(page).expect("UTF-8");
    let (preamble, _) = page.split_once(".TH").expect("a title");
    // Each section brings what belongs before the title.
    let text = page.replace(preamble, "");
    // A blank at the end of a line is a blank too many for whoever reads the difference.
    text.lines().fold(preamble.to_owned(), |text, line| text + line.trim_end() + "\n")
}

fn environment(page: &mut Roff, command: &clap::Command, settings: &[(String, String)]) {
    let options: Vec<_> = command.get_arguments().filter(|argument| !argument.is_hide_set()).collect();
    if options.iter().all(|option| variable(option).is_none()) && settings.is_empty() {
        return;
    }
    page.control("SH", ["ENVIRONMENT"]);
    page.text([roman("What an option says goes before what its variable says.")]);
    for option in options {
        let (Some(variable), Some(long)) = (variable(option), option.get_long()) else { continue };
        page.control("TP", []);
        page.text([bold(variable)]);
        let default = default(option);
        let default = if default.is_empty() { default } else { format!(" [default: {default}]") };
        page.text([roman("As "), bold(format!("--{long}")), roman(default)]);
    }
    for (name, what) in settings {
        page.control("TP", []);
        page.text([bold(name), roman(", "), bold(format!("{name}_FILE"))]);
        page.text([roman(what)]);
    }
}

/// The pages of the commands above, beside and below.
fn see_also(words: &[String]) -> String {
    let above = (0..words.len()).map(|length| words[..length].to_vec());
    let is_beside = |other: &[String]| {
        let [other, this] = [other, words].map(<[String]>::split_last);
        matches!((other, this), (Some((other, above_it)), Some((this, above))) if other != this && above_it == above)
    };
    let is_below = |other: &[String]| other.len() == words.len() + 1 && other.starts_with(words);
    let others = commands(&command_line()).into_iter().map(|(other, _)| other);
    let near = others.filter(|other| is_beside(other) || is_below(other));
    let names: BTreeSet<_> = above.chain(near).map(|other| format!("{}({SECTION})", page_name(&other))).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// The file of settings: all of them, each as it is when the file does not name it.
fn settings() -> String {
    let mut text = String::from(
        "# The settings of Tollgate, read by systemd when the service starts. Each stands here as it is when nobody says\n\
         # otherwise; take the # away from a line to change it, then: systemctl restart tollgate\n\
         #\n\
         # Secrets have no place here: see the end. No shell reads this file, so nothing is expanded in it.\n",
    );
    let all = commands(&command_line());
    let (_, serve) = all.iter().find(|(words, _)| words == &["serve"]).expect("the command");
    for option in serve.get_arguments() {
        let Some(variable) = variable(option) else { continue };
        let help = option.get_help().expect("what it is").to_string();
        let values: Vec<_> = option.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let help = if values.is_empty() { help } else { format!("{help} [possible values: {}]", values.join(", ")) };
        text.push_str(&comment(&help));
        text.extend(["#", &variable, "=", &default(option), "\n"]);
    }
    text.push_str(
        "\n# --- Secrets -------------------------------------------------------------------------------------------------\n\
         #\n\
         # Each is a file in /etc/tollgate/credentials, which root alone can read: systemd hands its content to the service\n\
         # (see LoadCredential= in systemd.exec(5)). Its name is that of the setting without TOLLGATE_. For example:\n\
         #\n\
         #     echo 'postgres://...' | install -m 600 /dev/stdin /etc/tollgate/credentials/DATABASE_URL\n",
    );
    for (name, what) in Notes::of(serve).settings {
        text.push_str(&comment(&format!("{}: {what}", name.trim_start_matches("TOLLGATE_"))));
    }
    text
}

/// A text as comment, after an empty line, in lines that are not too long.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("\n#")];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("a line");
        if line.trim_start().len() + 1 + word.len() > WIDTH {
            lines.push(format!("# {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

fn completion() -> String {
    let mut script = Vec::new();
    clap_complete::generate(Shell::Bash, &mut command_line(), "tollgate", &mut script);
    String::from_utf8(script).expect("UTF-8")
}

/// Everything that is made, by its place in the repository.
fn made() -> BTreeMap<String, String> {
    let pages = commands(&command_line())
        .into_iter()
        .map(|(words, command)| (format!("man/{}.{SECTION}", page_name(&words)), page(&words, &command)));
    pages
        .chain([
            ("deploy/debian/tollgate.env".to_owned(), settings()),
            ("deploy/debian/tollgate.bash".to_owned(), completion()),
        ])
        .collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever changes the command line asks for the files to be written anew")]
fn the_files_are_what_the_command_line_makes() {
    let made = made();
    if std::env::var_os("UPDATE_PAGES").is_some() {
        fs::create_dir_all(root().join("man")).expect("a folder");
        for file in fs::read_dir(root().join("man")).expect("the pages") {
            fs::remove_file(file.expect("a page").path()).expect("removed");
        }
        for (file, text) in &made {
            fs::write(root().join(file), text).expect("written");
        }
    }
    for (file, text) in &made {
        let is_same = fs::read_to_string(root().join(file)).is_ok_and(|there| there == *text);
        assert!(is_same, "{file} is not what the code makes: run `make man` and review the difference");
    }
    for file in fs::read_dir(root().join("man")).expect("the pages") {
        let name = file.expect("a page").file_name().to_string_lossy().into_owned();
        assert!(made.contains_key(&format!("man/{name}")), "man/{name} is of no command: run `make man`");
    }
}

/// The words of a text that look like options or settings.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let words = text.split(|letter| !is_part(letter));
    let is_name = |word: &&str| {
        word.strip_prefix("--").is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_lowercase()))
            || word.starts_with("TOLLGATE_")
    };
    words.filter(is_name).map(str::to_owned).collect()
}

/// What a page reads when it is set, near enough to look for names in it.
fn set(page: &str) -> String {
    let text = page.replace("\\-", "-");
    ["\\fB", "\\fI", "\\fR"].iter().fold(text, |text, font| text.replace(font, ""))
}

#[test]
fn a_page_names_the_options_and_settings_that_the_help_names_and_no_others() {
    let all = commands(&command_line());
    assert!(all.len() >= 9, "{}", all.len());
    for (words, _) in &all {
        let shown = Command::new(env!("CARGO_BIN_EXE_tollgate")).args(words).arg("--help").output().expect("the help");
        assert!(shown.status.success(), "{words:?}");
        let help = String::from_utf8(shown.stdout).expect("UTF-8");
        let file = format!("man/{}.{SECTION}", page_name(words));
        let page = set(&fs::read_to_string(root().join(&file)).expect("the page"));
        let in_page = names(&page);
        let of_files = |name: &String| name.strip_suffix("_FILE").is_some_and(|name| in_page.contains(name));
        let in_page: BTreeSet<_> = in_page.iter().filter(|name| !of_files(name)).cloned().collect();
        let in_help: BTreeSet<_> = names(&help).into_iter().filter(|name| !name.ends_with("_URL_FILE")).collect();
        assert!(in_help.contains("--help"), "{help}");
        assert_eq!(in_page, in_help, "{file}");
        for (below, _) in all.iter().filter(|(below, _)| below.len() == words.len() + 1 && below.starts_with(words)) {
            assert!(page.contains(&format!("{}({SECTION})", page_name(below))), "{file} does not name {below:?}");
            assert!(help.contains(&format!("\n  {}", below.last().expect("a word"))), "{help}");
        }
    }
}

#[test]
fn the_settings_of_the_package_are_those_of_the_service() {
    let text = fs::read_to_string(root().join("deploy/debian/tollgate.env")).expect("the file");
    let readme = fs::read_to_string(root().join("README.md")).expect("the file");
    let shown = Command::new(env!("CARGO_BIN_EXE_tollgate")).args(["serve", "--help"]).output().expect("the help");
    let help = String::from_utf8(shown.stdout).expect("UTF-8");
    let settings: BTreeSet<_> = names(&help).into_iter().filter(|name| name.starts_with("TOLLGATE_")).collect();
    assert!(settings.len() >= 40, "{settings:?}");
    for setting in &settings {
        let is_set = text.contains(&format!("\n#{setting}="));
        let is_secret = text.contains(&format!("\n# {}:", setting.trim_start_matches("TOLLGATE_")));
        assert!(is_set != is_secret, "{setting}");
        let short = format!("`{}`", setting.trim_start_matches("TOLLGATE_API_JWT"));
        assert!(readme.contains(&format!("`{setting}`")) || readme.contains(&short), "{setting} is not in the README");
    }
    // All lines are comments: the file changes nothing until somebody changes it.
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')));
}
