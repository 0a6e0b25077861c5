use std::sync::Arc;

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{ServerName, UnixTime},
};

use super::*;

fn settings(extra: &str) -> TlsSettings {
    TlsSettings {
        namespace: "ns".to_owned(),
        service: "svc".to_owned(),
        ca_config_map: "svc-ca".to_owned(),
        extra_sans: vec![extra.to_owned()],
    }
}

/// The day on which the first CA is made, and those behind it.
fn day(day: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + day * DAY_SECONDS).unwrap()
}

/// Whether a reader of `bundle` takes the server's certificate at `now`.
fn trusts(bundle: &str, served: &Material, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let served = CertificateDer::from_pem_slice(served.server_cert.as_bytes()).unwrap();
    let name = ServerName::try_from("svc.ns.svc").unwrap();
    let seconds = u64::try_from(now.as_second()).unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    verifier.verify_server_cert(&served, &[], &name, &[], now).is_ok()
}

fn authorities(material: &Material) -> usize {
    material.authorities().unwrap().len()
}

/// What stands in the Secret after looks on each of these days.
fn after(days: impl Iterator<Item = i64>, settings: &TlsSettings, from: &Material) -> Material {
    days.fold(from.clone(), |present, at| {
        present.renewed(settings, day(at)).unwrap().unwrap_or(present)
    })
}

#[test]
fn a_made_certificate_serves_its_names_and_is_renewed_for_new_ones() {
    let old = settings("10.77.0.1");
    let made = Material::make(&old, day(0)).unwrap();
    assert!(made.renewed(&old, day(59)).unwrap().is_none());
    let wider = settings("agents.example.com");
    let renewed = made.renewed(&wider, day(0)).unwrap().expect("a name is missing");
    assert!(renewed.renewed(&wider, day(59)).unwrap().is_none());
    assert_eq!(renewed.bundle, made.bundle, "clients keep their bundle");
    renewed.certified_key().unwrap();
}

#[test]
fn a_server_certificate_is_renewed_by_its_ca_when_a_third_of_its_life_is_left() {
    let settings = settings("localhost2");
    let made = Material::make(&settings, day(0)).unwrap();
    let renewed = made.renewed(&settings, day(60)).unwrap().expect("a third is left");
    assert_eq!((&renewed.bundle, &renewed.ca_key), (&made.bundle, &made.ca_key));
    assert!(trusts(&made.bundle, &renewed, day(149)));
    assert!(!trusts(&made.bundle, &renewed, day(151)));
}

#[test]
fn a_ca_that_could_end_before_what_it_signs_stands_beside_the_next_one_until_it_has_ended() {
    let settings = settings("localhost2");
    let made = Material::make(&settings, day(0)).unwrap();
    // The server's certificate is of day 3540.
    let last = after((0..=3540).step_by(60), &settings, &made);
    assert_eq!((authorities(&last), &last.ca_key), (1, &made.ca_key));

    let both = last.renewed(&settings, day(3561)).unwrap().expect("less than 90 days are left");
    assert_eq!(authorities(&both), 2);
    assert!(both.bundle.ends_with(&made.bundle), "the new one first: it signs");
    assert_eq!(both.server_cert, last.server_cert, "readers have time to take over the bundle");
    assert!(trusts(&both.bundle, &both, day(3561)) && trusts(&made.bundle, &both, day(3561)));
    assert!(both.renewed(&settings, day(3599)).unwrap().is_none(), "one new CA is enough");

    let signed = both.renewed(&settings, day(3600)).unwrap().expect("a third is left");
    assert_eq!((&signed.bundle, &signed.ca_key), (&both.bundle, &both.ca_key));
    assert!(trusts(&both.bundle, &signed, day(3600)));
    assert!(!trusts(&made.bundle, &signed, day(3600)), "the new CA has signed it");

    let alone = signed.renewed(&settings, day(3651)).unwrap().expect("the old CA has ended");
    assert_eq!((authorities(&alone), &alone.ca_key), (1, &both.ca_key));
    assert_eq!(alone.server_cert, signed.server_cert);
    assert!(trusts(&alone.bundle, &alone, day(3651)));
    assert!(alone.renewed(&settings, day(3652)).unwrap().is_none());
}

#[test]
fn readers_of_the_bundle_are_served_on_every_day_of_two_cas() {
    let settings = settings("localhost2");
    let mut present = Material::make(&settings, day(0)).unwrap();
    for at in 0..=7300 {
        let before = present.bundle.clone();
        if let Some(renewed) = present.renewed(&settings, day(at)).unwrap() {
            present = renewed;
        } else if at % 30 != 0 {
            continue;
        }
        assert!(trusts(&present.bundle, &present, day(at)), "day {at}");
        assert!(trusts(&before, &present, day(at)), "day {at}, by the bundle of the day before");
        assert!(authorities(&present) <= 2, "day {at}");
    }
}

#[test]
fn a_server_certificate_that_outlives_its_ca_or_stands_behind_an_ended_one_is_made_anew_with_it() {
    let settings = settings("localhost2");
    let made = Material::make(&settings, day(0)).unwrap();
    // As an older version did, which never looked at the end of its CA.
    let outliving = made.clone().signed(&settings, day(3630)).unwrap();
    let both = outliving.renewed(&settings, day(3631)).unwrap().expect("19 days are left");
    assert_eq!(authorities(&both), 2);
    assert!(trusts(&both.bundle, &both, day(3660)));
    let late = outliving.renewed(&settings, day(3700)).unwrap().expect("it has ended");
    assert_eq!(authorities(&late), 1);
    assert!(trusts(&late.bundle, &late, day(3700)));
}

#[test]
fn material_survives_its_secret() {
    let settings = settings("localhost2");
    let made = Material::make(&settings, day(0)).unwrap();
    let both = made.renewed(&settings, day(3600)).unwrap().expect("its CA is near its end");
    for material in [made, both] {
        let read = Material::read(&material.secret(&settings, None));
        assert!(read.is_some_and(|read| read == material));
    }
    assert!(Material::read(&Secret::default()).is_none());
}

#[test]
fn a_secret_without_a_certificate_is_refused_by_name() {
    let settings = settings("localhost2");
    let made = Material::make(&settings, day(0)).unwrap();
    let empty = Material { bundle: "\n".to_owned(), ..made };
    let error = empty.renewed(&settings, day(0)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("svc-tls: ca.crt"), "{error}");
}
