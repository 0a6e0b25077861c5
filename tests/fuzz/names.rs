//! Durations, quantities, hosts and paths: short texts from specifications and requests.

use std::net::IpAddr;

use agent_operator::domain::duration::{DURATION_PATTERN, DurationError, GoDuration};
use agent_operator_controller::settings::quantity_milli;
use agent_operator_doubles::fuzz::fuzz;
use agent_operator_supervisor::gateway::{egress::policy::HostPort, server::Route};
use http::Method;
use regex::Regex;

fn texts<const N: usize>(texts: [&str; N]) -> Vec<Vec<u8>> {
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

#[test]
fn a_duration_is_what_the_schema_lets_in_and_is_written_as_the_same() {
    let pattern = Regex::new(DURATION_PATTERN).unwrap();
    let corpus = texts(["30m", "1h30m", "90s", "9999h999999m99999999s", "0s", "", "1d", "1m1h"]);
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match text.parse::<GoDuration>() {
            Ok(duration) => {
                assert_eq!(duration.to_string().parse(), Ok(duration), "{text:?}");
            }
            Err(DurationError::Zero) => {}
            Err(DurationError::Malformed(_)) => {
                assert!(text.is_empty() || !pattern.is_match(text), "{text:?} passes the schema");
            }
        }
    });
}

#[test]
fn a_quantity_is_finite_and_grows_with_its_unit() {
    let corpus =
        texts(["4", "500m", "8Gi", "20Gi", "1e3", "0.1", "1Ei", "nan", "inf", "-1", "9e99"]);
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Some(milli) = quantity_milli(text) else { return };
        assert!(milli < 9_300_000_000_000_000_000, "{text:?}");
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits && text.len() <= 12 {
            assert_eq!(milli, text.parse::<u64>().unwrap() * 1000, "{text:?}");
            if milli > 0 {
                let larger = quantity_milli(&format!("{text}Ki"));
                assert!(larger.is_none_or(|larger| larger > milli), "{text:?}");
            }
        }
    });
}

#[test]
fn a_host_that_passes_is_a_name_in_lower_case_and_never_an_address() {
    let corpus = texts([
        "example.com:443",
        "a.b-c.example:8443",
        "127.0.0.1:80",
        "[::1]:443",
        "0x7f000001:80",
        "EXAMPLE.com:443",
        "example.com.:443",
        "xn--bcher-kva.example:443",
        "2130706433:80",
    ]);
    let mut passed = 0_u32;
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(target) = HostPort::parse_target(text) else { return };
        passed += 1;
        assert_eq!(HostPort::parse_target(&target.to_string()), Ok(target.clone()), "{text:?}");
        assert_eq!(target.host, target.host.to_ascii_lowercase());
        assert!(target.host.len() <= 253 && !target.host.ends_with('.') && target.port > 0);
        assert!(target.host.parse::<IpAddr>().is_err(), "{text:?}");
        // As the C library reads addresses: also 127.1, and octal or hexadecimal numbers.
        let last = target.host.rsplit('.').next().unwrap();
        let number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        assert!(!number, "{text:?} may be read as an address");
    });
    assert!(passed > 1);
}

#[test]
fn a_path_with_a_route_is_plain_so_no_parser_reads_it_otherwise() {
    let corpus = texts([
        "POST /v1/redeem",
        "GET /v1/step",
        "POST /llm/v1/messages",
        "GET /git/main.git/info/refs",
        "HEAD /",
        "CONNECT x",
        "POST /llm/../v1/result",
        "GET /git/%2e%2e/x",
        "POST //llm/v1",
    ]);
    let mut routed = 0_u32;
    fuzz(&corpus, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Some((method, path)) = text.split_once(' ') else { return };
        let Ok(method) = method.parse::<Method>() else { return };
        let Some(route) = Route::of(&method, path) else { return };
        routed += 1;
        if route == Route::Connect {
            return;
        }
        assert!(path.starts_with('/') && path.is_ascii(), "{text:?}");
        for odd in ["//", "/../", "/./", "%", "\\", ";", "?", "#", "\0", " "] {
            assert!(!path.contains(odd), "{text:?}");
        }
        assert!(!path.ends_with("/..") && !path.ends_with("/."), "{text:?}");
    });
    assert!(routed > 4);
}
