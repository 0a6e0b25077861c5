//! JSON of the attempt API, from a sandbox: what is taken is read again as the same.

use agent_operator::{
    attempt::{
        EventsRequest, GateRequest, PublishRequest, PullRequestRequest, RedeemRequest, StepResult,
    },
    domain::omitted::{MARK_BYTES_MAX, Omitted},
};
use agent_operator_doubles::fuzz::fuzz;
use serde::{Serialize, de::DeserializeOwned};

const CORPUS: [&str; 7] = [
    r#"{"nonce":"00112233445566778899aabbccddeeff"}"#,
    r#"{"sandbox":{"pidsLimit":1024,"userNamespace":false,"landlock":7,"seccompFilter":true},"iflink":42}"#,
    r#"{"first":0,"records":[{"time":"2027-01-15T10:00:00Z","type":"text","text":"hi"},{"time":"2027-01-15T10:00:01Z","type":"toolCall","id":"t","name":"Bash","input":"{}"}]}"#,
    r#"{"repository":"main","commit":"0123456789012345678901234567890123456789"}"#,
    r#"{"title":"t","body":"b"}"#,
    r#"{"reason":"Completed","message":"done","exitCode":0,"facts":{"output":"x"},"reportedUsage":{"turns":1,"inputTokens":2,"outputTokens":3,"cacheReadTokens":0,"cacheWriteTokens":0,"costMicroUsd":4},"events":3}"#,
    r#"{"reason":"Unstarted","message":"","exitCode":-1,"startFault":"ImageNotRunnable","facts":{},"reportedUsage":{},"events":18446744073709551615}"#,
];

fn read_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return false };
    let written = serde_json::to_vec(&value).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), value);
    true
}

#[test]
fn what_is_taken_from_a_sandbox_is_read_again_as_the_same() {
    let mut taken = [0_u32; 6];
    fuzz(&CORPUS.map(|text| text.as_bytes().to_vec()), |bytes| {
        let all = [
            read_again::<RedeemRequest>(bytes),
            read_again::<GateRequest>(bytes),
            read_again::<EventsRequest>(bytes),
            read_again::<PublishRequest>(bytes),
            read_again::<PullRequestRequest>(bytes),
            read_again::<StepResult>(bytes),
        ];
        all.iter().zip(&mut taken).for_each(|(ok, count)| *count += u32::from(*ok));
    });
    assert!(taken.iter().all(|count| *count > 0), "a corpus that nothing takes: {taken:?}");
}

#[test]
fn a_mark_of_dropped_output_that_is_taken_is_written_alike() {
    let corpus = [Omitted { lines: 1, bytes: 7 }, Omitted { lines: 12_345, bytes: 1 << 49 }]
        .map(|mark| mark.to_string().into_bytes());
    let mut taken = 0_u32;
    fuzz(&corpus, |bytes| {
        let Some(mark) = Omitted::parse(bytes) else { return };
        taken += 1;
        let text = mark.to_string();
        assert!(text.len() <= MARK_BYTES_MAX);
        assert_eq!(Omitted::parse(text.as_bytes()), Some(mark));
    });
    assert!(taken > 1);
}
