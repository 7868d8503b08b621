//! What the documents say of the tests: a claim that names a test is only worth something while there is one.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_test_that_the_notes_on_security_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let notes = fs::read_to_string(root.join("docs/security.md")).expect("the notes");
    let quoted = notes.split('`').skip(1).step_by(2);
    let named: BTreeSet<_> =
        quoted.filter_map(|text| text.split_once("::")).filter(|(_, test)| *test != "test").collect();
    assert!(named.len() >= 20, "{named:?}");
    for (module, test) in named {
        let source = fs::read_to_string(root.join(format!("tests/suite/{module}.rs"))).expect(module);
        assert!(source.contains(&format!("fn {test}(")), "{module}::{test} is not there");
    }
}
