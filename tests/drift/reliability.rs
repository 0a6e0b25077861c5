//! docs/reliability.md names for each class of faults the tests that show it: all classes are there,
//! and so are the tests.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{read, rust_files};

/// Classes of faults.
const CLASSES: std::ops::RangeInclusive<u32> = 1..=37;
/// Classes that no test shows yet. Their row says `open` in place of a test.
const OPEN: [u32; 0] = [];

/// The rows of the table of classes: number, and what stands in the last column.
fn rows(page: &str) -> BTreeMap<u32, String> {
    let (_, section) = page.split_once("\n## Classes of faults\n").expect("the section of classes");
    let section = section.split("\n## ").next().unwrap();
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Some(class) = cells.first().and_then(|cell| cell.parse().ok()) else { continue };
        assert_eq!(cells.len(), 3, "class {class}: {line}");
        assert!(rows.insert(class, cells[2].to_owned()).is_none(), "class {class} has two rows");
    }
    rows
}

/// What is in back-ticks.
pub(super) fn named(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The names of all tests: functions under a test attribute, and the cases of the suites that run in
/// two places.
pub(super) fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let folders = ["src", "controller", "supervisor", "agent-runner", "tests"];
    for path in folders.iter().flat_map(|folder| rust_files(folder)) {
        let text = read(&path);
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            }
            let rest = line.strip_prefix("async ").unwrap_or(line);
            if let Some(rest) = rest.strip_prefix("fn ")
                && std::mem::take(&mut is_test)
            {
                found.insert(rest.split(['(', '<']).next().unwrap().to_owned());
            }
            // A case of tests/conformance, or a property of proptest, is a test by its macro.
            if let Some(case) = line.strip_prefix("$case!(") {
                found.insert(case.trim_end_matches(");").to_owned());
            }
        }
        if text.contains("proptest! {") {
            let names = text.lines().filter_map(|line| line.trim().strip_prefix("fn "));
            found.extend(names.map(|rest| rest.split('(').next().unwrap().to_owned()));
        }
    }
    found
}

#[test]
fn every_class_of_faults_names_tests_that_exist() {
    let rows = rows(&read("docs/reliability.md"));
    let missing: Vec<_> = CLASSES.filter(|class| !rows.contains_key(class)).collect();
    assert!(missing.is_empty(), "classes without a row: {missing:?}");
    let tests = tests();
    assert!(tests.len() > 300, "tests must be seen: {}", tests.len());
    for (class, cell) in &rows {
        let named = named(cell);
        let open = OPEN.contains(class);
        assert_eq!(cell == "open", open, "class {class}: {cell}");
        assert!(open == named.is_empty(), "class {class} names no test");
        for test in named {
            assert!(tests.contains(test), "class {class}: there is no test {test}");
        }
    }
}
