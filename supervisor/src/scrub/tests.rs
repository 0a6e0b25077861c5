use agent_operator::domain::{Secret, secret::purpose};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use proptest::prelude::*;

use super::*;

const VALUE: &str = "s3cr3t/with+odd \"chars\"~ä";

fn credential(value: &str) -> Credential {
    Credential {
        id: "git/main".to_owned(),
        purpose: purpose::GIT.to_owned(),
        host: "github.com".to_owned(),
        scheme: "basic".to_owned(),
        value: Secret::new(value),
    }
}

fn watching(value: &str) -> Watchlist {
    Watchlist::of(&[credential(value)])
}

#[test]
fn a_secret_is_found_raw_and_in_every_encoding_that_is_promised() {
    let list = watching(VALUE);
    let hex: String = VALUE
        .bytes()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect();
    let percent = percent_encoding::utf8_percent_encode(VALUE, percent_encoding::NON_ALPHANUMERIC);
    let mut texts = vec![
        format!("key={VALUE}"),
        hex.clone(),
        hex.to_uppercase(),
        percent.to_string(),
        percent
            .to_string()
            .replace("%2F", "%2f")
            .replace("%2B", "%2b")
            .replace("%7E", "%7e")
            .replace("%C3%A4", "%c3%a4"),
        "s3cr3t%2Fwith%2Bodd%20%22chars%22~%C3%A4".to_owned(),
        serde_json::to_string(VALUE).unwrap(),
    ];
    for before in ["", "x", "xy", "xyz"] {
        for after in ["", "1", "12"] {
            let framed = format!("{before}{VALUE}{after}");
            texts.extend([STANDARD.encode(&framed), URL_SAFE.encode(&framed)]);
        }
    }
    for text in texts {
        let scrubbed = list.scrub(format!("before {text} after"));
        assert_ne!(scrubbed, format!("before {text} after"), "not found");
        assert_eq!(scrubbed.len(), text.len() + 13, "offsets stay: {text}");
        assert!(list.find(scrubbed.as_bytes(), 0).is_none(), "{scrubbed}");
    }
}

#[test]
fn the_password_of_a_pair_is_a_secret_of_its_own() {
    let list = watching("robot:hunter2-hunter2\n");
    assert_eq!(list.scrub("the hunter2-hunter2 got out".into()), "the *************** got out");
    assert_eq!(list.scrub("robot:hunter2-hunter2".into()), "*".repeat(21));
}

#[test]
fn several_secrets_in_one_text_are_all_masked_and_named() {
    let model = Credential { id: "model/anthropic".to_owned(), ..credential("sk-ant-0123456789") };
    let list = Watchlist::of(&[credential("ghp_abcdefghij"), model]);
    let text = "ghp_abcdefghij sk-ant-0123456789 ghp_abcdefghij";
    let found = list.find(text.as_bytes(), 1).unwrap();
    assert_eq!((&*found.credential, found.start), ("model/anthropic", 15));
    let mut bytes = text.as_bytes().to_vec();
    assert_eq!(list.mask(&mut bytes), 3);
}

#[test]
fn short_values_and_empty_lists_find_nothing() {
    for list in [watching("short"), Watchlist::default(), Watchlist::of(&[])] {
        assert!(list.is_empty());
        assert_eq!(list.scrub("short and everything else".to_owned()), "short and everything else");
    }
    assert!(watching("long-enough").find(b"", 0).is_none());
    assert!(watching("long-enough").find(b"long", 0).is_none());
}

#[test]
fn what_is_watched_for_cannot_be_read_from_the_list() {
    let shown = format!("{:?}", watching("canary-of-the-list"));
    assert!(!shown.contains("canary") && shown.contains("digest"), "{shown}");
}

/// Written down so that nobody relies on more: see docs/explanation/trust-model.md.
#[test]
fn a_secret_that_was_changed_otherwise_passes() {
    let list = watching("0123456789abcdef");
    for text in ["01234567 89abcdef", "fedcba9876543210", "0123456789abcde"] {
        assert_eq!(list.scrub(text.to_owned()), text);
    }
}

proptest! {
    #[test]
    fn a_secret_is_found_wherever_it_stands(
        before in proptest::collection::vec(any::<u8>(), 0..200),
        after in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let list = watching("0123456789abcdef");
        let mut bytes = [&before[..], b"0123456789abcdef", &after[..]].concat();
        let length = bytes.len();
        prop_assert!(list.find(&bytes, 0).is_some());
        prop_assert_eq!(list.mask(&mut bytes), 1);
        prop_assert_eq!(bytes.len(), length);
        prop_assert_eq!(&bytes[..before.len()], &before[..]);
    }
}
