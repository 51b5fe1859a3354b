//! What a simulated household consists of: devices, the computers they run on, and what links them.

use barycenter_core::household::{Household, LinkQuality};
use barycenter_core::io::{Micros, SECOND};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Fixed cost of starting a piece of work and of handing its result on, seconds: as the planner assumes.
pub const JOB_SECONDS: f64 = 0.001;

/// How fast a device computes; measured, or the same rate for everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Frozen layers, FLOP per second.
    pub frozen: f64,
    /// Side network beside them in the fill phase, FLOP per second.
    pub side: f64,
    /// Side network from the cache, head included, FLOP per second.
    pub cached: f64,
    /// Per job, seconds.
    pub job_seconds: f64,
}

impl Speed {
    /// The speed of the matrix product for everything.
    pub fn from_gflops(gflops: f64) -> Self {
        let flops = gflops.max(1e-3) * 1e9;
        Self { frozen: flops, side: flops, cached: flops, job_seconds: JOB_SECONDS }
    }
}

/// Processor time that an end of a link takes from its computer: encrypting, copying, acknowledging, passing packets on.
/// Zero where cores are to spare for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkWork {
    /// Seconds per byte sent.
    pub sent_byte_seconds: f64,
    /// Seconds per byte received.
    pub received_byte_seconds: f64,
}

/// A device of the household.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// For people.
    pub name: String,
    /// What it says of itself when joining, GFLOP/s.
    pub gflops: f64,
    /// What it really does.
    pub speed: Speed,
    /// What its links take from its computer.
    pub link_work: LinkWork,
    /// Memory it offers, bytes.
    pub memory_bytes: u64,
    /// Cache storage it offers, bytes.
    pub storage_bytes: u64,
    /// Power while computing, watts.
    pub watts: f64,
    /// Power while present and not computing, watts.
    pub idle_watts: f64,
}

impl DeviceSpec {
    /// A device that computes everything at one rate, with cores to spare for its links, and draws no power.
    pub fn new(name: impl Into<String>, gflops: f64, memory_bytes: u64, storage_bytes: u64) -> Self {
        Self { name: name.into(), gflops, speed: Speed::from_gflops(gflops), link_work: LinkWork::default(), memory_bytes, storage_bytes, watts: 0.0, idle_watts: 0.0 }
    }
}

/// A link between two devices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSpec {
    /// Bandwidth of either direction, bytes per second.
    pub bytes_per_second: f64,
    /// One way.
    pub latency: Micros,
    /// Spread of the latency, one standard deviation.
    pub jitter: Micros,
    /// Breaks of the connection, at random.
    pub loss_per_hour: f64,
}

/// A Wi-Fi cell: its devices share one medium.
#[derive(Clone, Debug, PartialEq)]
pub struct CellSpec {
    /// For people.
    pub name: String,
    /// What one transfer has if it is alone in the air, bytes per second.
    pub bytes_per_second: f64,
    /// Its devices, by index.
    pub devices: Vec<usize>,
}

/// All that links the devices. The server hangs on a cable and is reached over the default link.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    /// Pairs that are not listed.
    pub default_link: LinkSpec,
    /// By (lower index, higher index).
    pub links: BTreeMap<(usize, usize), LinkSpec>,
    /// Cells; a device is in one at most.
    pub cells: Vec<CellSpec>,
    /// What some devices can send to all others together, and as much that they can receive, bytes per second.
    pub ports: BTreeMap<usize, f64>,
}

/// A household.
#[derive(Clone, Debug, PartialEq)]
pub struct House {
    /// Devices, by index.
    pub devices: Vec<DeviceSpec>,
    /// Network.
    pub network: NetworkSpec,
    /// Groups of devices that share the cores of one computer: (cores, devices). Others compute for themselves.
    pub computers: Vec<(f64, Vec<usize>)>,
}

impl House {
    /// Devices with the same link between all.
    pub fn with_link(devices: Vec<DeviceSpec>, default_link: LinkSpec) -> Self {
        Self { devices, network: NetworkSpec { default_link, links: BTreeMap::new(), cells: Vec::new(), ports: BTreeMap::new() }, computers: Vec::new() }
    }
}

/// A household's file: every device is a computer of its own; the server is reached over the default link.
impl From<&Household> for House {
    fn from(household: &Household) -> Self {
        let devices = household.devices.iter().map(|d| DeviceSpec {
            name: d.name.clone(),
            gflops: d.gflops,
            speed: Speed::from_gflops(d.gflops),
            link_work: LinkWork::default(),
            memory_bytes: (d.memory_mb * 1e6) as u64,
            storage_bytes: (d.storage_mb * 1e6) as u64,
            watts: d.watts,
            idle_watts: d.idle_watts,
        });
        let cells = household.wifi_cells.iter().map(|c| CellSpec { name: c.name.clone(), bytes_per_second: c.mbit_per_s * 1e6 / 8.0, devices: c.devices.clone() });
        let links = household.links.iter().map(|l| ((l.between[0], l.between[1]), LinkSpec::from(&l.quality)));
        let network = NetworkSpec { default_link: LinkSpec::from(&household.default_link), links: links.collect(), cells: cells.collect(), ports: BTreeMap::new() };
        Self { devices: devices.collect(), network, computers: Vec::new() }
    }
}

impl From<&LinkQuality> for LinkSpec {
    fn from(quality: &LinkQuality) -> Self {
        let micros = |millis: f64| (millis / 1000.0 * SECOND as f64) as Micros;
        Self { bytes_per_second: quality.mbit_per_s * 1e6 / 8.0, latency: micros(quality.latency_ms), jitter: micros(quality.jitter_ms), loss_per_hour: quality.loss_per_hour }
    }
}
