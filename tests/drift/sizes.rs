//! Long files and functions: in them unrelated concerns mix unseen, each by one reasonable addition.

use super::{
    source::{code, functions, is_test},
    tree::rust_files,
};

/// Most lines of a file, tests not counted.
const FILE_LINES_MAX: usize = 600;
/// Most lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// What may be longer: file, function (empty: the file itself), reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

const FOLDERS: [&str; 6] = [
    "src",
    "controller/src",
    "supervisor/src",
    "agent-runner/src",
    "tests/doubles/src",
    "build.rs",
];

/// File, function and length of everything that is too long.
fn too_long() -> Vec<(String, String, usize)> {
    let mut found = Vec::new();
    for path in FOLDERS.iter().flat_map(|folder| rust_files(folder)).filter(|path| !is_test(path)) {
        let code = code(&path);
        let file = path.display().to_string();
        let lines = code.lines().count();
        if lines > FILE_LINES_MAX {
            found.push((file.clone(), String::new(), lines));
        }
        for (name, _, lines) in functions(&code) {
            if lines > FUNCTION_LINES_MAX {
                found.push((file.clone(), name, lines));
            }
        }
    }
    found
}

#[test]
fn files_and_functions_are_short_or_have_a_reason() {
    let excepted = |file: &str, function: &str| {
        EXCEPTIONS.iter().any(|(f, name, _)| *f == file && *name == function)
    };
    let found = too_long();
    let without_reason: Vec<_> =
        found.iter().filter(|(file, function, _)| !excepted(file, function)).collect();
    assert!(without_reason.is_empty(), "too long: {without_reason:#?}");
    for (file, function, reason) in EXCEPTIONS {
        let needed = found.iter().any(|(f, name, _)| f == file && name == function);
        assert!(needed, "{file} {function} is short now; take its exception away ({reason})");
    }
}
