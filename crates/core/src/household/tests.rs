use super::*;

const FILE: &str = r#"{
  "name": "two people",
  "devices": [
    { "name": "laptop", "kind": "laptop", "gflops": 60, "memory_mb": 4000, "storage_mb": 8000, "gpu": false,
      "watts": 20, "idle_watts": 4, "joins_at_seconds": 0, "leaves_at_seconds": null },
    { "name": "phone", "kind": "phone", "gflops": 15, "memory_mb": 1500.5, "joins_at_seconds": 5, "leaves_at_seconds": 60 },
    { "name": "tablet", "kind": "tablet", "gflops": 20, "memory_mb": 2000 }
  ],
  "links": [ { "between": ["phone", "laptop"], "mbit_per_s": 80, "latency_ms": 3 } ],
  "default_link": { "mbit_per_s": 400, "latency_ms": 1 },
  "wifi_cells": [ { "name": "home", "mbit_per_s": 120, "devices": ["tablet", "phone"] } ]
}"#;

fn error(text: &str) -> String {
    Household::parse(text).expect_err("bad input").to_string()
}

#[test]
fn a_file_is_read_with_its_defaults() {
    let household = Household::parse(FILE).expect("a household");
    assert_eq!((household.name.as_str(), household.devices.len()), ("two people", 3));
    let phone = &household.devices[1];
    assert_eq!((phone.storage_mb, phone.gpu, (phone.watts, phone.idle_watts)), (4000.0, false, DeviceKind::Phone.watts(false)));
    assert_eq!((phone.joins_at_seconds, phone.leaves_at_seconds), (5.0, Some(60.0)));
    assert_eq!(household.link(1, 0), LinkQuality { mbit_per_s: 80.0, latency_ms: 3.0, jitter_ms: 2.0, loss_per_hour: 0.0 });
    assert_eq!(household.link(0, 2).mbit_per_s, 400.0);
    assert_eq!((household.cell_of(0), household.cell_of(1), household.cell_of(2)), (None, Some(0), Some(0)));
    let small = Household::parse(r#"{"devices": [{"name": "a", "kind": "server", "gflops": 1, "memory_mb": 1}]}"#).expect("a household");
    assert_eq!((small.default_link, small.name.as_str()), (LinkQuality::default(), "household"));
}

#[test]
fn measurements_are_those_of_single_links_within_their_cells() {
    let household = Household::parse(FILE).expect("a household");
    let measured = household.measurements();
    assert_eq!(measured.devices[1].memory_budget_bytes, 1_500_500_000);
    let between = |a, b| measured.links.iter().find(|l| (l.a, l.b) == (NodeId(a), NodeId(b))).map(|l| (l.bytes_per_second, l.round_trip_millis));
    assert_eq!(between(1, 2), Some((10e6, 6.0)), "its own link is slower than the air");
    assert_eq!(between(1, 3), Some((15e6, 2.0)), "the air is slower than the wire");
    assert_eq!(between(2, 3), Some((7.5e6, 2.0)), "through the air twice");
    let two = household.measurements_of(|d| d != 1);
    assert_eq!((two.devices.len(), two.links.len(), two.devices[1].node), (2, 1, household.node(2)));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let with = |from: &str, to: &str| {
        assert!(FILE.contains(from), "{from}");
        error(&FILE.replacen(from, to, 1))
    };
    for (from, to, expected) in [
        (r#""memory_mb": 2000"#, r#""gpu": false"#, "devices[2].memory_mb: this field is missing: a number above 0 is expected"),
        (r#""memory_mb": 2000"#, r#""memory_mb": 0"#, "devices[2].memory_mb: a number above 0 to 1000000000 is expected, and this is 0"),
        (r#""gflops": 15"#, r#""gflops": "fast""#, "devices[1].gflops: a number above 0 is expected, and this is the text \"fast\""),
        (r#""kind": "tablet""#, r#""kind": "toaster""#, "devices[2].kind: \"toaster\" is no kind of device"),
        (r#""name": "tablet""#, r#""name": "phone""#, "devices[2].name: \"phone\" is the name of devices[1] too"),
        (r#""name": "tablet""#, r#""name": " ""#, "devices[2].name: a device needs a name"),
        (r#""gpu": false"#, r#""gpus": false"#, "devices[0].gpus: there is no such field"),
        (r#""idle_watts": 4"#, r#""idle_watts": 40"#, "devices[0].idle_watts: 40 W"),
        (r#""leaves_at_seconds": 60"#, r#""leaves_at_seconds": 5"#, "devices[1].leaves_at_seconds: it leaves at 5 s"),
        (r#""mbit_per_s": 80"#, r#""mbit_per_s": -80"#, "links[0].mbit_per_s: a number above 0 to 1000000000 is expected, and this is -80"),
        (r#""mbit_per_s": 80"#, r#""mbit_per_s": 1e300"#, "links[0].mbit_per_s: a number above 0 to 1000000000 is expected"),
        (r#""mbit_per_s": 80, "#, "", "links[0].mbit_per_s: this field is missing"),
        (r#"["phone", "laptop"]"#, r#"["phone", "fridge"]"#, "links[0].between[1]: there is no device \"fridge\""),
        (r#"["phone", "laptop"]"#, r#"["phone", "phone"]"#, "links[0].between: a link is between two devices, and both"),
        (r#"["phone", "laptop"]"#, r#"["phone"]"#, "links[0].between: a link is between two devices, and 1 are named"),
        (r#"["tablet", "phone"]"#, r#"["tablet", "tablet"]"#, "wifi_cells[0].devices[1]: this device is in the cell \"home\" already"),
        (r#""mbit_per_s": 400"#, r#""mbit_per_s": 0"#, "default_link.mbit_per_s: a number above 0"),
        (r#""default_link": {"#, r#""default_link": 5, "x": {"#, "x: there is no such field"),
    ] {
        let said = with(from, to);
        assert!(said.starts_with(expected), "expected {expected:?}, got {said:?}");
    }
    let twice = FILE.replacen(r#""links": ["#, r#""links": [ { "between": ["laptop", "phone"], "mbit_per_s": 1 }, "#, 1);
    assert!(error(&twice).starts_with("links[1].between: these two have a link already, links[0]"), "{}", error(&twice));
    assert_eq!(error(r#"{"devices": []}"#), "devices: a household has at least one device");
    assert!(error("[1]").starts_with("the file: an object"));
}

#[test]
fn a_slip_in_the_json_is_said_with_line_and_column() {
    let said = error("{\n  \"name\": \"a\",\n  \"devices\": [}\n}");
    assert!(said.starts_with("line 3, column 15: this is not JSON"), "{said}");
    let said = error("{\"devices\": [{\"gflops\": 1e999}]}");
    assert!(said.starts_with("line 1, column"), "{said}");
}
