//! The forms in which a secret value is looked for: as it is, in base64 wherever it begins in the
//! encoded bytes, percent-encoded, in hex, and as a JSON string has it.

use agent_operator::domain::Credential;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

/// What `encodeURIComponent` leaves alone besides letters and digits.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'!')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// Shorter values are not watched for: they are found in text that knows nothing of them.
const VALUE_BYTES_MIN: usize = 8;

type Bytes = Zeroizing<Vec<u8>>;

/// Every form of the credential's value, and of the password alone where a user name stands before it.
pub(super) fn of(credential: &Credential) -> Vec<Bytes> {
    let value = credential.value.expose().trim_end_matches(['\r', '\n']);
    let mut forms = of_value(value);
    if let Some((_, password)) = value.split_once(':') {
        forms.extend(of_value(password));
    }
    forms
}

fn of_value(value: &str) -> Vec<Bytes> {
    if value.len() < VALUE_BYTES_MIN {
        return Vec::new();
    }
    let raw = value.as_bytes();
    let text = |text: String| Zeroizing::new(text.into_bytes());
    let hex = |upper: bool| {
        let digits = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
        let pairs =
            raw.iter().flat_map(|b| [digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]);
        Zeroizing::new(pairs.collect::<Vec<u8>>())
    };
    let percent = |set| utf8_percent_encode(value, set).to_string();
    let mut forms = vec![
        Zeroizing::new(raw.to_vec()),
        hex(false),
        hex(true),
        text(percent(NON_ALPHANUMERIC)),
        text(lower_escapes(&percent(NON_ALPHANUMERIC))),
        text(percent(COMPONENT)),
        text(lower_escapes(&percent(COMPONENT))),
    ];
    if let Ok(quoted) = serde_json::to_string(value) {
        forms.push(Zeroizing::new(quoted.as_bytes()[1..quoted.len() - 1].to_vec()));
    }
    for offset in 0..3 {
        forms.push(in_base64(raw, offset, |bytes| STANDARD_NO_PAD.encode(bytes)));
        forms.push(in_base64(raw, offset, |bytes| URL_SAFE_NO_PAD.encode(bytes)));
    }
    forms
}

/// The characters of an encoding that depend on nothing but `raw`, when `offset` bytes (modulo 3)
/// stand before it.
fn in_base64(raw: &[u8], offset: usize, encode: impl Fn(&[u8]) -> String) -> Bytes {
    let padded = Zeroizing::new([&[0_u8; 2][..offset], raw].concat());
    let encoded = Zeroizing::new(encode(&padded));
    // Six bits a character: those that hold a bit of what stands before or after are left out.
    let (first, end) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
    Zeroizing::new(encoded.as_bytes().get(first..end).unwrap_or_default().to_vec())
}

/// `%2F` as `%2f`: clients write either.
fn lower_escapes(encoded: &str) -> String {
    let mut out = String::with_capacity(encoded.len());
    let mut escape = 0_u8;
    for c in encoded.chars() {
        out.push(if escape > 0 { c.to_ascii_lowercase() } else { c });
        escape = if c == '%' { 2 } else { escape.saturating_sub(1) };
    }
    out
}
