use super::*;

fn seen(holder: Option<&str>, address: Option<&str>) -> Seen {
    Seen {
        version: "1".to_owned(),
        holder: holder.map(str::to_owned),
        address: address.map(str::to_owned),
        transitions: 3,
        duration: Duration::from_secs(5),
        at: clock::instant(),
    }
}

#[test]
fn only_a_lease_of_the_same_pod_at_the_same_address_is_one_of_a_predecessor() {
    let config = |address: Option<&str>| {
        ElectionConfig::new("ns", "lease", "pod-a_00ff").at(address.map(str::to_owned))
    };
    let here = Some("10.0.0.1:8443");
    assert!(seen(Some("pod-a_1234"), here).is_of_a_predecessor(&config(here)));
    for (holder, address, own) in [
        (Some("pod-b_1234"), here, here),
        (Some("pod-a_1234"), Some("10.0.0.2:8443"), here),
        (Some("pod-a_1234"), None, here),
        (Some("pod-a_1234"), None, None),
        (Some("pod-a_1234"), here, None),
        (None, here, here),
    ] {
        let found = seen(holder, address).is_of_a_predecessor(&config(own));
        assert!(!found, "{holder:?} at {address:?} is none for {own:?}");
    }
}
