//! A household on paper: its devices and links, read from a JSON file and checked.
//!
//! `barycenter plan` and `barycenter simulate` read the same file:
//!
//! ```json
//! {
//!   "name": "two people",
//!   "devices": [
//!     { "name": "laptop", "kind": "laptop", "gflops": 60, "memory_mb": 4000, "storage_mb": 8000, "gpu": false,
//!       "watts": 20, "idle_watts": 4, "joins_at_seconds": 0, "leaves_at_seconds": null },
//!     { "name": "phone", "kind": "phone", "gflops": 15, "memory_mb": 1500 }
//!   ],
//!   "links": [
//!     { "between": ["laptop", "phone"], "mbit_per_s": 80, "latency_ms": 3, "jitter_ms": 1, "loss_per_hour": 0 }
//!   ],
//!   "default_link": { "mbit_per_s": 40, "latency_ms": 4, "jitter_ms": 2 },
//!   "wifi_cells": [ { "name": "home", "mbit_per_s": 120, "devices": ["phone"] } ]
//! }
//! ```
//!
//! | field | where it is absent |
//! |---|---|
//! | `name` | "household" |
//! | `devices[].name`, `kind`, `gflops`, `memory_mb` | an error |
//! | `devices[].storage_mb` | 4000 |
//! | `devices[].gpu` | false |
//! | `devices[].watts`, `idle_watts` | by kind ([`DeviceKind::watts`]), more with a GPU |
//! | `devices[].joins_at_seconds`, `leaves_at_seconds` | there from the start, never leaves |
//! | `links` | every pair has the default link |
//! | `links[].between`, `mbit_per_s` | an error |
//! | `links[].latency_ms`, `jitter_ms`, `loss_per_hour` | those of the default link |
//! | `default_link`, and its fields | 40 Mbit/s, 4 ms, 2 ms, never lost |
//! | `wifi_cells` | none: every device is on a wire of its own |
//!
//! MB are 10⁶ bytes, Mbit 10⁶ bits. Latency is one way. A field that is not in the table is an error. Several links may
//! carry traffic at once without slowing each other, but a Wi-Fi cell is shared airtime: whatever its devices send or
//! receive takes its share, and what goes from one of its devices to another is in the air twice.

mod fields;
#[cfg(test)]
mod tests;

use barycenter_protocol::NodeId;
use barycenter_protocol::control::Measurements;
use barycenter_protocol::plan::{DeviceProfile, LinkProfile};
use fields::{Fields, Range};
use std::collections::BTreeMap;

/// A household as its file describes it, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Household {
    /// For people.
    pub name: String,
    /// At least one; names differ.
    pub devices: Vec<Device>,
    /// Pairs whose link is not the default one, each pair at most once.
    pub links: Vec<Link>,
    /// Of every other pair.
    pub default_link: LinkQuality,
    /// Shared airtime; a device is in one at most.
    pub wifi_cells: Vec<WifiCell>,
}

/// One device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// For people, and what links and cells call it by.
    pub name: String,
    /// What sort of device.
    pub kind: DeviceKind,
    /// Matrix products of the engine, GFLOP/s (2 FLOP per multiply-add).
    pub gflops: f64,
    /// Memory it offers, MB.
    pub memory_mb: f64,
    /// Storage it offers for the cache, MB.
    pub storage_mb: f64,
    /// Whether `gflops` are a GPU's.
    pub gpu: bool,
    /// Power while computing, W.
    pub watts: f64,
    /// Power while waiting, W; at most `watts`.
    pub idle_watts: f64,
    /// Seconds after the start at which it joins.
    pub joins_at_seconds: f64,
    /// Seconds after the start at which it says that it leaves, later than it joins; `None`: never.
    pub leaves_at_seconds: Option<f64>,
}

/// What sort of device: only the defaults of its power depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A notebook.
    Laptop,
    /// A phone.
    Phone,
    /// A tablet.
    Tablet,
    /// A desktop computer.
    Desktop,
    /// A small notebook for schools.
    Chromebook,
    /// A board with a small GPU, as in the paper.
    Jetson,
    /// A computer that is always on.
    Server,
}

/// A pair of devices with a link of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Indices of two devices, the lower one first.
    pub between: [usize; 2],
    /// What it can do.
    pub quality: LinkQuality,
}

/// What a link can do, in each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkQuality {
    /// Bandwidth, 10⁶ bits per second.
    pub mbit_per_s: f64,
    /// One way, milliseconds.
    pub latency_ms: f64,
    /// Spread of the latency (one standard deviation), milliseconds.
    pub jitter_ms: f64,
    /// How often the connection breaks, times per hour.
    pub loss_per_hour: f64,
}

/// Devices that share airtime.
#[derive(Clone, Debug, PartialEq)]
pub struct WifiCell {
    /// For people.
    pub name: String,
    /// All that goes through the air at a time, 10⁶ bits per second.
    pub mbit_per_s: f64,
    /// Indices of its devices, ascending.
    pub devices: Vec<usize>,
}

/// Why a file is no household.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HouseholdError {
    /// Not JSON.
    #[error("line {line}, column {column}: this is not JSON ({problem})")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },
    /// JSON, but not a household.
    #[error("{place}: {problem}")]
    Content {
        /// Path of the value, as `devices[2].memory_mb`.
        place: String,
        /// What was expected, what came.
        problem: String,
    },
}

impl HouseholdError {
    fn content(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Content { place: place.into(), problem: problem.into() }
    }
}

impl Default for LinkQuality {
    /// An ordinary home Wi-Fi.
    fn default() -> Self {
        Self { mbit_per_s: 40.0, latency_ms: 4.0, jitter_ms: 2.0, loss_per_hour: 0.0 }
    }
}

/// Names in files, with the values of the enum.
const KINDS: [(&str, DeviceKind); 7] = [
    ("laptop", DeviceKind::Laptop),
    ("phone", DeviceKind::Phone),
    ("tablet", DeviceKind::Tablet),
    ("desktop", DeviceKind::Desktop),
    ("chromebook", DeviceKind::Chromebook),
    ("jetson", DeviceKind::Jetson),
    ("server", DeviceKind::Server),
];

impl DeviceKind {
    /// As in files.
    pub fn as_str(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("device", |(name, _)| name)
    }

    /// Usual power while computing and while waiting, W: what such devices draw from the wall, screen dimmed.
    pub fn watts(self, gpu: bool) -> (f64, f64) {
        match (self, gpu) {
            (Self::Laptop, false) => (25.0, 5.0),
            (Self::Laptop, true) => (80.0, 8.0),
            (Self::Phone, _) => (4.0, 0.8),
            (Self::Tablet, _) => (8.0, 1.5),
            (Self::Desktop, false) => (110.0, 45.0),
            (Self::Desktop, true) => (320.0, 60.0),
            (Self::Chromebook, _) => (12.0, 3.0),
            (Self::Jetson, _) => (10.0, 2.0),
            (Self::Server, false) => (150.0, 60.0),
            (Self::Server, true) => (400.0, 80.0),
        }
    }
}

impl Household {
    /// Reads a file's text. The error is one sentence with the place.
    pub fn parse(text: &str) -> Result<Self, HouseholdError> {
        let value = serde_json::from_str(text).map_err(|e: serde_json::Error| {
            let said = e.to_string();
            let problem = said.rsplit_once(" at line ").map_or(said.as_str(), |(problem, _)| problem).to_owned();
            HouseholdError::Syntax { line: e.line(), column: e.column(), problem }
        })?;
        let file = Fields::of(String::new(), &value, &["name", "devices", "links", "default_link", "wifi_cells"])?;
        let name = file.text("name", Some("household"))?;
        let devices = file.list("devices")?.into_iter().map(|(place, value)| device(place, value)).collect::<Result<Vec<_>, _>>()?;
        if devices.is_empty() {
            return Err(HouseholdError::content("devices", "a household has at least one device"));
        }
        let names = indices(&devices)?;
        let default_link = match file.get("default_link") {
            Some(value) => quality(&Fields::of("default_link".into(), value, &QUALITY)?, LinkQuality::default(), Some(LinkQuality::default().mbit_per_s))?,
            None => LinkQuality::default(),
        };
        let mut links = Vec::new();
        let mut pairs = BTreeMap::new();
        for (place, value) in file.list("links")? {
            let link = link(place.clone(), value, &names, default_link)?;
            if let Some(first) = pairs.insert(link.between, place.clone()) {
                return Err(HouseholdError::content(format!("{place}.between"), format!("these two have a link already, {first}: keep one of them")));
            }
            links.push(link);
        }
        let mut cell_of = BTreeMap::new();
        let mut wifi_cells = Vec::new();
        for (place, value) in file.list("wifi_cells")? {
            wifi_cells.push(cell(place, value, &names, &mut cell_of)?);
        }
        Ok(Self { name, devices, links, default_link, wifi_cells })
    }

    /// Id of the device with this index in what [`Self::measurements`] gives: index + 1.
    pub fn node(&self, device: usize) -> NodeId {
        NodeId(device as u32 + 1)
    }

    /// Index of the device of this name.
    pub fn device_named(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|d| d.name == name)
    }

    /// The link of two devices, its own or the default one, without regard to cells.
    pub fn link(&self, a: usize, b: usize) -> LinkQuality {
        let between = [a.min(b), a.max(b)];
        self.links.iter().find(|l| l.between == between).map_or(self.default_link, |l| l.quality)
    }

    /// The cell a device is in.
    pub fn cell_of(&self, device: usize) -> Option<usize> {
        self.wifi_cells.iter().position(|c| c.devices.binary_search(&device).is_ok())
    }

    /// What the devices would measure of themselves and, one pair at a time, of the links between them: the bandwidth
    /// is the link's or, if that is less, what its cells have: all airtime, or half of it between two devices of one cell.
    pub fn measurements(&self) -> Measurements {
        self.measurements_of(|_| true)
    }

    /// The same of the devices (by index) that are wanted.
    pub fn measurements_of(&self, wanted: impl Fn(usize) -> bool) -> Measurements {
        let there: Vec<_> = (0..self.devices.len()).filter(|d| wanted(*d)).collect();
        let own: BTreeMap<_, _> = self.links.iter().map(|l| (l.between, l.quality)).collect();
        let cells: Vec<_> = (0..self.devices.len()).map(|d| self.cell_of(d)).collect();
        let devices = there.iter().map(|d| self.devices[*d].profile(self.node(*d))).collect();
        let mut links = Vec::with_capacity(there.len() * there.len().saturating_sub(1) / 2);
        for (at, &a) in there.iter().enumerate() {
            for &b in &there[at + 1..] {
                let quality = own.get(&[a, b]).copied().unwrap_or(self.default_link);
                let air = |cell: Option<usize>| cell.map_or(f64::INFINITY, |c| self.wifi_cells[c].mbit_per_s);
                let shared = if cells[a].is_some() && cells[a] == cells[b] { air(cells[a]) / 2.0 } else { air(cells[a]).min(air(cells[b])) };
                links.push(LinkProfile {
                    a: self.node(a),
                    b: self.node(b),
                    round_trip_millis: 2.0 * quality.latency_ms,
                    bytes_per_second: quality.mbit_per_s.min(shared) * 1e6 / 8.0,
                });
            }
        }
        Measurements { devices, links }
    }
}

impl Device {
    /// What it would say of itself.
    pub fn profile(&self, node: NodeId) -> DeviceProfile {
        DeviceProfile {
            node,
            name: self.name.clone(),
            gflops: self.gflops,
            memory_budget_bytes: (self.memory_mb * 1e6) as u64,
            storage_budget_bytes: (self.storage_mb * 1e6) as u64,
        }
    }
}

fn device(place: String, value: &serde_json::Value) -> Result<Device, HouseholdError> {
    let known = ["name", "kind", "gflops", "memory_mb", "storage_mb", "gpu", "watts", "idle_watts", "joins_at_seconds", "leaves_at_seconds"];
    let fields = Fields::of(place, value, &known)?;
    let name = fields.text("name", None)?;
    if name.trim().is_empty() {
        return Err(HouseholdError::content(fields.place("name"), "a device needs a name"));
    }
    let kind = fields.text("kind", None)?;
    let kind = KINDS.iter().find(|(name, _)| *name == kind).map(|(_, kind)| *kind).ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
        HouseholdError::content(fields.place("kind"), format!("\"{kind}\" is no kind of device: choose one of {}", names.join(", ")))
    })?;
    let gpu = fields.flag("gpu", false)?;
    let usual = kind.watts(gpu);
    let watts = fields.number("watts", Range::FromZero, Some(usual.0))?;
    let idle_watts = fields.number("idle_watts", Range::FromZero, Some(usual.1.min(watts)))?;
    if idle_watts > watts {
        return Err(HouseholdError::content(fields.place("idle_watts"), format!("{idle_watts} W while waiting are more than the {watts} W while computing")));
    }
    let joins_at_seconds = fields.number("joins_at_seconds", Range::FromZero, Some(0.0))?;
    let leaves_at_seconds = match fields.get("leaves_at_seconds") {
        None | Some(serde_json::Value::Null) => None,
        Some(_) => Some(fields.number("leaves_at_seconds", Range::FromZero, None)?),
    };
    if let Some(leaves) = leaves_at_seconds.filter(|leaves| *leaves <= joins_at_seconds) {
        return Err(HouseholdError::content(fields.place("leaves_at_seconds"), format!("it leaves at {leaves} s, but joins only at {joins_at_seconds} s")));
    }
    Ok(Device {
        name,
        kind,
        gflops: fields.number("gflops", Range::AboveZero, None)?,
        memory_mb: fields.number("memory_mb", Range::AboveZero, None)?,
        storage_mb: fields.number("storage_mb", Range::FromZero, Some(4000.0))?,
        gpu,
        watts,
        idle_watts,
        joins_at_seconds,
        leaves_at_seconds,
    })
}

const QUALITY: [&str; 4] = ["mbit_per_s", "latency_ms", "jitter_ms", "loss_per_hour"];

fn quality(fields: &Fields, default: LinkQuality, default_mbit_per_s: Option<f64>) -> Result<LinkQuality, HouseholdError> {
    Ok(LinkQuality {
        mbit_per_s: fields.number("mbit_per_s", Range::AboveZero, default_mbit_per_s)?,
        latency_ms: fields.number("latency_ms", Range::FromZero, Some(default.latency_ms))?,
        jitter_ms: fields.number("jitter_ms", Range::FromZero, Some(default.jitter_ms))?,
        loss_per_hour: fields.number("loss_per_hour", Range::FromZero, Some(default.loss_per_hour))?,
    })
}

fn link(place: String, value: &serde_json::Value, names: &BTreeMap<&str, usize>, default: LinkQuality) -> Result<Link, HouseholdError> {
    let known: Vec<_> = ["between"].into_iter().chain(QUALITY).collect();
    let fields = Fields::of(place, value, &known)?;
    let ends = fields.names("between", names)?;
    let [a, b] = ends[..] else {
        return Err(HouseholdError::content(fields.place("between"), format!("a link is between two devices, and {} are named", ends.len())));
    };
    if a == b {
        return Err(HouseholdError::content(fields.place("between"), "a link is between two devices, and both names are the same"));
    }
    Ok(Link { between: [a.min(b), a.max(b)], quality: quality(&fields, default, None)? })
}

fn cell(place: String, value: &serde_json::Value, names: &BTreeMap<&str, usize>, cell_of: &mut BTreeMap<usize, String>) -> Result<WifiCell, HouseholdError> {
    let fields = Fields::of(place, value, &["name", "mbit_per_s", "devices"])?;
    let name = fields.text("name", Some("Wi-Fi"))?;
    let mut devices = fields.names("devices", names)?;
    for (at, device) in devices.iter().enumerate() {
        if let Some(other) = cell_of.insert(*device, name.clone()) {
            let place = format!("{}[{at}]", fields.place("devices"));
            return Err(HouseholdError::content(place, format!("this device is in the cell \"{other}\" already, and a device is in one only")));
        }
    }
    devices.sort();
    Ok(WifiCell { name, mbit_per_s: fields.number("mbit_per_s", Range::AboveZero, None)?, devices })
}

fn indices(devices: &[Device]) -> Result<BTreeMap<&str, usize>, HouseholdError> {
    let mut names = BTreeMap::new();
    for (at, device) in devices.iter().enumerate() {
        if let Some(first) = names.insert(device.name.as_str(), at) {
            return Err(HouseholdError::content(format!("devices[{at}].name"), format!("\"{}\" is the name of devices[{first}] too: give each its own", device.name)));
        }
    }
    Ok(names)
}
