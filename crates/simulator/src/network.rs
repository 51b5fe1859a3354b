//! What carries messages: cables with a bandwidth of their own, and Wi-Fi cells whose members share the airtime.
//!
//! A message between two devices at one access point crosses the air twice, one to a cable once, one to another cell once in
//! each. A link slower than the air spends the rest of its time outside of it. The messages of one direction of a link go
//! one after the other; small ones (the control channel) do not wait for large ones. A device's port may carry less than its
//! links together: they share it, each direction for itself. Link, ports and the processors at both ends work on a message at
//! the same time, and it is through when the slowest of them is.

use crate::house::{LinkSpec, LinkWork, NetworkSpec};
use crate::shared::{Shared, Use};
use barycenter_core::io::{Micros, SECOND};
use rand::Rng;
use rand_pcg::Pcg64;
use std::collections::{BTreeMap, VecDeque};

/// A device, by its index in the house; the server is [`SERVER`].
pub(crate) type End = usize;
/// The home server. It hangs on a cable.
pub(crate) const SERVER: End = usize::MAX;

/// Something to be called back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// [`Network::cell_due`].
    Cell(usize),
    /// [`Network::port_due`].
    Port(Port),
    /// [`Network::part_done`].
    Cable(Message),
}

/// A device's port: sending (true) or receiving.
pub(crate) type Port = (End, bool);

/// A message on its way over one direction of a link: from, to, number.
pub(crate) type Message = (End, End, u64);

/// What the network asks for.
#[derive(Debug)]
pub(crate) enum Effect<P> {
    CallAt(Micros, Timer),
    Deliver(Micros, P),
    /// `End` begins (true) or ends sending over one of its links.
    Sending(End, bool),
    /// `End`'s computer works for so many seconds on a message; then [`Network::part_done`].
    Work(End, f64, Message),
}

/// Something that users share while they need it: the air of a cell, one direction of a port.
#[derive(Debug)]
struct Medium<T> {
    bytes_per_second: f64,
    share: Shared,
    users: BTreeMap<Use, T>,
    called_at: Option<Micros>,
}

impl<T> Medium<T> {
    fn new(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, share: Shared::new(1.0), users: BTreeMap::new(), called_at: None }
    }

    /// Somebody needs it alone for so many seconds, or longer with others.
    fn start(&mut self, now: Micros, seconds: f64, user: T) -> Use {
        let which = self.share.start(now, seconds);
        self.users.insert(which, user);
        which
    }

    fn cancel(&mut self, now: Micros, which: Use) {
        self.share.cancel(now, which);
        self.users.remove(&which);
    }

    /// Who is done by now, in the order in which they were.
    fn done(&mut self, now: Micros) -> Vec<T> {
        self.called_at = None;
        self.share.finished(now).into_iter().filter_map(|which| self.users.remove(&which)).collect()
    }

    /// When to look at it, unless that is known already.
    fn call(&mut self) -> Option<Micros> {
        let at = self.share.next_end().filter(|at| self.called_at != Some(*at))?;
        self.called_at = Some(at);
        Some(at)
    }
}

/// A message on its way.
#[derive(Debug)]
struct Current<P> {
    parcel: P,
    /// Cells still to cross, with the seconds of airtime that takes.
    hops: VecDeque<(usize, f64)>,
    /// Its place in the cell it crosses now.
    place: Option<(usize, Use)>,
    /// Seconds that the link takes beyond the air.
    rest: f64,
    /// Of the link, and the ports and processors at its ends, how many are not done with it.
    parts: u32,
}

/// The messages of one direction of a link.
#[derive(Debug)]
struct Flow<P> {
    waiting: VecDeque<(u64, P)>,
    current: Option<Current<P>>,
    /// Number of the current message, so that a call for an earlier one is recognised.
    number: u64,
}

#[derive(Debug)]
pub(crate) struct Network<P> {
    default_link: LinkSpec,
    links: BTreeMap<(End, End), LinkSpec>,
    cell_of: BTreeMap<End, usize>,
    /// Their users are directions of links.
    cells: Vec<Medium<(End, End)>>,
    ports: BTreeMap<Port, Medium<Message>>,
    /// By device.
    work: Vec<LinkWork>,
    flows: BTreeMap<(End, End), Flow<P>>,
    messages: u64,
    /// Last arrival on each direction of the bulk and control channels: both are ordered.
    arrivals: BTreeMap<(End, End, bool), Micros>,
    pub effects: VecDeque<Effect<P>>,
}

/// The ports that a message passes, if they are limited.
fn ports_of(from: End, to: End) -> [Port; 2] {
    [(from, true), (to, false)]
}

impl<P> Network<P> {
    /// `work`: what links take from the computers of the devices.
    pub fn new(spec: &NetworkSpec, work: Vec<LinkWork>) -> Self {
        let cells = spec.cells.iter().map(|c| Medium::new(c.bytes_per_second)).collect();
        let cell_of = spec.cells.iter().enumerate().flat_map(|(i, c)| c.devices.iter().map(move |d| (*d, i))).collect();
        let links = spec.links.iter().map(|(&(a, b), link)| ((a.min(b), a.max(b)), *link)).collect();
        let ports = spec.ports.iter().flat_map(|(&device, &rate)| [true, false].map(|sends| ((device, sends), Medium::new(rate)))).collect();
        Self { default_link: spec.default_link, links, cell_of, cells, ports, work, flows: BTreeMap::new(), messages: 0, arrivals: BTreeMap::new(), effects: VecDeque::new() }
    }

    /// What is known of a link.
    pub fn link(&self, a: End, b: End) -> LinkSpec {
        self.links.get(&(a.min(b), a.max(b))).copied().unwrap_or(self.default_link)
    }

    /// Bytes per second that a measurement of an otherwise quiet link finds.
    pub fn quiet_bytes_per_second(&self, a: End, b: End) -> f64 {
        let air: f64 = self.hops(a, b, 1.0).iter().map(|hop| hop.1).sum();
        let ports = ports_of(a, b).into_iter().filter_map(|port| self.ports.get(&port)).map(|port| 1.0 / port.bytes_per_second);
        1.0 / ports.fold(air.max(1.0 / self.link(a, b).bytes_per_second), f64::max)
    }

    /// The cells that a message crosses, with the seconds of airtime that takes. Both crossings of one and the same cell are
    /// one use of twice the time.
    fn hops(&self, a: End, b: End, bytes: f64) -> VecDeque<(usize, f64)> {
        let seconds = |cell: usize| bytes / self.cells[cell].bytes_per_second;
        match (self.cell_of.get(&a).copied(), self.cell_of.get(&b).copied()) {
            (Some(x), Some(y)) if x == y => [(x, 2.0 * seconds(x))].into(),
            (x, y) => x.into_iter().chain(y).map(|cell| (cell, seconds(cell))).collect(),
        }
    }

    /// When something small that leaves now arrives: after the latency, and not before what was sent earlier.
    fn arrival(&mut self, now: Micros, from: End, to: End, bulk: bool, random: &mut Pcg64) -> Micros {
        let link = self.link(from, to);
        // a uniform spread of one standard deviation is √12 of them wide
        let spread = (12f64.sqrt() * link.jitter as f64) as Micros;
        let latency = (link.latency + if spread > 0 { random.next_u64() % (spread + 1) } else { 0 }).saturating_sub(spread / 2);
        let last = self.arrivals.entry((from, to, bulk)).or_insert(0);
        *last = (*last).max(now + latency);
        *last
    }

    /// Sends a message of the control channel.
    pub fn send_small(&mut self, now: Micros, from: End, to: End, parcel: P, random: &mut Pcg64) {
        let at = self.arrival(now, from, to, false, random);
        self.effects.push_back(Effect::Deliver(at, parcel));
    }

    /// Sends bytes of the bulk channel.
    pub fn send(&mut self, now: Micros, from: End, to: End, bytes: u64, parcel: P) {
        let flow = self.flows.entry((from, to)).or_insert_with(|| Flow { waiting: VecDeque::new(), current: None, number: 0 });
        flow.waiting.push_back((bytes, parcel));
        self.start_next(now, from, to);
    }

    fn start_next(&mut self, now: Micros, from: End, to: End) {
        let Some((bytes, parcel)) = self.flows.get_mut(&(from, to)).filter(|f| f.current.is_none()).and_then(|f| f.waiting.pop_front()) else { return };
        let hops = self.hops(from, to, bytes as f64);
        let air: f64 = hops.iter().map(|hop| hop.1).sum();
        let rest = (bytes as f64 / self.link(from, to).bytes_per_second - air).max(0.0);
        self.messages += 1;
        let number = self.messages;
        let at_ends = [(from, self.work.get(from).map(|w| w.sent_byte_seconds)), (to, self.work.get(to).map(|w| w.received_byte_seconds))];
        let at_ends: Vec<_> = at_ends.into_iter().filter_map(|(end, per_byte)| Some((end, per_byte.filter(|s| *s > 0.0)? * bytes as f64))).collect();
        if let Some(flow) = self.flows.get_mut(&(from, to)) {
            flow.number = number;
            let ports = ports_of(from, to).iter().filter(|port| self.ports.contains_key(port)).count();
            flow.current = Some(Current { parcel, hops, place: None, rest, parts: (1 + at_ends.len() + ports) as u32 });
        }
        self.effects.push_back(Effect::Sending(from, true));
        self.effects.extend(at_ends.into_iter().map(|(end, seconds)| Effect::Work(end, seconds, (from, to, number))));
        for port in ports_of(from, to) {
            if let Some(medium) = self.ports.get_mut(&port) {
                medium.start(now, bytes as f64 / medium.bytes_per_second, (from, to, number));
                self.call_for_port(port);
            }
        }
        self.next_hop(now, from, to);
    }

    /// The current message takes the next cell, or after the last one what its link takes beyond the air.
    fn next_hop(&mut self, now: Micros, from: End, to: End) {
        let Some(flow) = self.flows.get_mut(&(from, to)) else { return };
        let number = flow.number;
        let Some(current) = &mut flow.current else { return };
        match current.hops.pop_front() {
            Some((cell, seconds)) => {
                let which = self.cells[cell].start(now, seconds, (from, to));
                current.place = Some((cell, which));
                self.call_for(cell);
            }
            None => {
                current.place = None;
                let takes = (current.rest * SECOND as f64).ceil() as Micros;
                self.effects.push_back(Effect::CallAt(now + takes, Timer::Cable((from, to, number))));
            }
        }
    }

    fn call_for(&mut self, cell: usize) {
        self.effects.extend(self.cells[cell].call().map(|at| Effect::CallAt(at, Timer::Cell(cell))));
    }

    /// Time to look at a cell.
    pub fn cell_due(&mut self, now: Micros, cell: usize) {
        for (from, to) in self.cells[cell].done(now) {
            self.next_hop(now, from, to);
        }
        self.call_for(cell);
    }

    fn call_for_port(&mut self, port: Port) {
        let at = self.ports.get_mut(&port).and_then(Medium::call);
        self.effects.extend(at.map(|at| Effect::CallAt(at, Timer::Port(port))));
    }

    /// Time to look at a port.
    pub fn port_due(&mut self, now: Micros, port: Port, random: &mut Pcg64) {
        let done = self.ports.get_mut(&port).map_or_else(Vec::new, |medium| medium.done(now));
        self.call_for_port(port);
        for message in done {
            self.part_done(now, message, random);
        }
    }

    /// The last byte of a message has left, or a port or a processor at an end is done with it.
    pub fn part_done(&mut self, now: Micros, (from, to, number): Message, random: &mut Pcg64) {
        let Some(current) = self.flows.get_mut(&(from, to)).filter(|f| f.number == number).and_then(|f| f.current.as_mut()) else { return };
        current.parts -= 1;
        if current.parts == 0 {
            self.finish(now, from, to, random);
        }
    }

    fn finish(&mut self, now: Micros, from: End, to: End, random: &mut Pcg64) {
        let at = self.arrival(now, from, to, true, random);
        if let Some(current) = self.flows.get_mut(&(from, to)).and_then(|f| f.current.take()) {
            self.effects.push_back(Effect::Sending(from, false));
            self.effects.push_back(Effect::Deliver(at, current.parcel));
        }
        self.start_next(now, from, to);
    }

    /// A device is gone, and with it what it was sending and what was on its way to it.
    pub fn forget(&mut self, now: Micros, end: End) {
        self.drop_where(now, |from, to| from == end || to == end);
        self.arrivals.retain(|(from, to, _), _| *from != end && *to != end);
    }

    /// A link is gone, and with it what was on its way over it.
    pub fn forget_link(&mut self, now: Micros, a: End, b: End) {
        self.drop_where(now, |from, to| (from, to) == (a, b) || (from, to) == (b, a));
    }

    fn drop_where(&mut self, now: Micros, is_gone: impl Fn(End, End) -> bool) {
        let gone: Vec<_> = self.flows.keys().copied().filter(|(from, to)| is_gone(*from, *to)).collect();
        for (from, to) in gone {
            if let Some(Current { place, .. }) = self.flows.remove(&(from, to)).and_then(|f| f.current) {
                self.effects.push_back(Effect::Sending(from, false));
                if let Some((cell, which)) = place {
                    self.cells[cell].cancel(now, which);
                    self.call_for(cell);
                }
                for port in ports_of(from, to) {
                    let Some(medium) = self.ports.get_mut(&port) else { continue };
                    let gone = medium.users.iter().find(|(_, message)| (message.0, message.1) == (from, to)).map(|(which, _)| *which);
                    gone.into_iter().for_each(|which| medium.cancel(now, which));
                    self.call_for_port(port);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::house::CellSpec;
    use rand::SeedableRng;

    /// When each message arrives, milliseconds.
    fn play(spec: &NetworkSpec, sends: &[(End, End, u64)]) -> Vec<(usize, u64)> {
        play_with_work(spec, Vec::new(), sends)
    }

    /// The same where every device has cores for all its messages.
    fn play_with_work(spec: &NetworkSpec, work: Vec<LinkWork>, sends: &[(End, End, u64)]) -> Vec<(usize, u64)> {
        let mut random = Pcg64::seed_from_u64(1);
        let mut network = Network::new(spec, work);
        for (number, &(from, to, bytes)) in sends.iter().enumerate() {
            network.send(0, from, to, bytes, number);
        }
        let (mut timers, mut arrivals) = (Vec::new(), Vec::new());
        let mut now = 0;
        loop {
            while let Some(effect) = network.effects.pop_front() {
                match effect {
                    Effect::CallAt(at, timer) => timers.push((at, timer)),
                    Effect::Deliver(at, number) => arrivals.push((number, at / 1000)),
                    Effect::Sending(..) => {}
                    Effect::Work(_, seconds, message) => timers.push((now + (seconds * SECOND as f64) as Micros, Timer::Cable(message))),
                }
            }
            timers.sort_by_key(|t| t.0);
            if timers.is_empty() {
                arrivals.sort();
                return arrivals;
            }
            let (at, timer) = timers.remove(0);
            now = at;
            match timer {
                Timer::Cell(cell) => network.cell_due(now, cell),
                Timer::Port(port) => network.port_due(now, port, &mut random),
                Timer::Cable(message) => network.part_done(now, message, &mut random),
            }
        }
    }

    fn house(cells: Vec<CellSpec>) -> NetworkSpec {
        NetworkSpec { default_link: LinkSpec { bytes_per_second: 1e6, latency: 2000, jitter: 0, loss_per_hour: 0.0 }, links: BTreeMap::new(), cells, ports: BTreeMap::new() }
    }

    #[test]
    fn each_direction_of_a_cable_has_its_own_bandwidth() {
        assert_eq!(play(&house(vec![]), &[(0, 1, 1_000_000), (0, 1, 500_000), (1, 0, 1_000_000), (0, 2, 1_000_000)]), [(0, 1002), (1, 1502), (2, 1002), (3, 1002)]);
    }

    #[test]
    fn a_cell_is_crossed_twice_and_shared_by_all_its_members() {
        let cell = CellSpec { name: "home".into(), bytes_per_second: 1e6, devices: vec![0, 1, 2] };
        assert_eq!(play(&house(vec![cell.clone()]), &[(0, 1, 1_000_000)]), [(0, 2002)]);
        assert_eq!(play(&house(vec![cell.clone()]), &[(0, SERVER, 1_000_000)]), [(0, 1002)]);
        assert_eq!(play(&house(vec![cell]), &[(0, 1, 1_000_000), (1, 2, 1_000_000), (2, 0, 1_000_000)]), [(0, 6002), (1, 6002), (2, 6002)]);
    }

    #[test]
    fn a_slow_link_leaves_the_air_to_others() {
        let mut spec = house(vec![CellSpec { name: "home".into(), bytes_per_second: 1e6, devices: vec![0, 1] }]);
        spec.links.insert((0, SERVER), LinkSpec { bytes_per_second: 1e5, ..spec.default_link });
        assert_eq!(play(&spec, &[(0, SERVER, 100_000), (1, SERVER, 1_000_000)]), [(0, 1102), (1, 1102)]);
        assert_eq!(Network::<()>::new(&spec, Vec::new()).quiet_bytes_per_second(0, SERVER).round(), 1e5);
        assert_eq!(Network::<()>::new(&spec, Vec::new()).quiet_bytes_per_second(0, 1).round(), 5e5);
    }

    #[test]
    fn the_links_of_a_device_share_its_port_each_way() {
        let mut spec = house(vec![]);
        spec.ports = [(0, 1e6)].into();
        // two links share what 0 sends, nothing of it what 0 receives or what others send each other
        assert_eq!(play(&spec, &[(0, 1, 1_000_000), (0, 2, 1_000_000), (1, 0, 1_000_000), (1, 2, 1_000_000)]), [(0, 2002), (1, 2002), (2, 1002), (3, 1002)]);
        // a link slower than its part of the port leaves the rest to others
        spec.links.insert((0, 2), LinkSpec { bytes_per_second: 1e5, ..spec.default_link });
        assert_eq!(play(&spec, &[(0, 1, 1_000_000), (0, 2, 100_000)]), [(0, 1102), (1, 1002)]);
        assert_eq!(Network::<()>::new(&NetworkSpec { ports: [(0, 2e5)].into(), ..spec }, Vec::new()).quiet_bytes_per_second(1, 0).round(), 2e5);
    }

    #[test]
    fn a_message_is_through_when_the_link_and_the_processors_at_its_ends_are() {
        let work = |sent_byte_seconds, received_byte_seconds| LinkWork { sent_byte_seconds, received_byte_seconds };
        let spec = house(vec![]);
        // a link of a microsecond a byte hides cheaper processors, a dearer one at either end holds it up
        for (work, millis) in [(vec![work(0.5e-6, 0.0), work(0.0, 0.9e-6)], 1002), (vec![work(3e-6, 0.0)], 3002), (vec![work(0.0, 9e-6), work(9e-6, 2e-6)], 2002)] {
            assert_eq!(play_with_work(&spec, work, &[(0, 1, 1_000_000)]), [(0, millis)]);
        }
        // the server is no device of the house
        assert_eq!(play_with_work(&spec, vec![work(0.0, 0.0)], &[(SERVER, 0, 1_000_000)]), [(0, 1002)]);
    }
}
