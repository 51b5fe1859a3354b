//! Connections through the home server, for pairs of devices that do not reach each other: sealed frames in parcels.
//!
//! To the link it is a [`Connection`] like any other. A description is a public key; the answerer's channels open with the
//! first packet that opens, so that nothing arrives before its receiver has keys. An empty frame is the farewell.

mod office;
mod seal;

pub use office::{Inbox, PostOffice};

use crate::connection::{Connection, ConnectionEvent, ConnectionEvents, ConnectionEventsSender, Description, DescriptionKind, Plane};
use crate::http::Http;
use crate::platform;
use barycenter_protocol::NodeId;
use barycenter_protocol::auth::Invitation;
use barycenter_protocol::frame::MAX_FRAME_BYTES;
use barycenter_protocol::relay::{MAX_PARCEL_BYTES, Parcel};
use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt, select};
use seal::{KeyPair, Opener, SEAL_BYTES, Sealer};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Largest packet and its length in a parcel.
const MAX_PACKET_BYTES: usize = 4 + MAX_FRAME_BYTES + SEAL_BYTES;

/// Makes the relayed connections of one node for one stay at the server.
pub struct RelayConnector {
    /// Started with the first connection: most nodes never need a relay.
    commands: OnceCell<mpsc::UnboundedSender<Command>>,
    start: Box<dyn Fn(mpsc::UnboundedReceiver<Command>)>,
}

/// What a connection asks of the one that serves all of them.
enum Command {
    Open(u64, Mailbox),
    Remote(u64, String),
    Close(u64),
}

/// A connection as the relay sees it.
struct Mailbox {
    peer: NodeId,
    is_offerer: bool,
    /// Our public key.
    key: String,
    is_described: bool,
    events: ConnectionEventsSender,
    state: State,
}

enum State {
    /// Until the other end's key is known.
    Waiting(KeyPair, [mpsc::UnboundedReceiver<Vec<u8>>; 2]),
    Agreed { openers: [Opener; 2], is_open: bool },
}

impl RelayConnector {
    /// Parcels are carried by `office`; all work is done by a task of this thread.
    pub fn new<O: PostOffice + 'static>(office: impl Fn() -> O + 'static) -> Self {
        Self::started_by(move |commands| platform::spawn_local(serve(office(), commands)))
    }

    /// Parcels are carried by the server of the invitation, where `node` has joined and was given `session`. Natively a
    /// thread of its own seals and posts, so that a node that computes for seconds does not hold up its links.
    pub fn through_server(invitation: Invitation, node: NodeId, session: String) -> Self {
        let work = move |invitation: Invitation, session: String, commands| async move {
            match Http::new(&invitation) {
                Ok(http) => {
                    http.set_session(Some(session));
                    serve(office::Server { http, node }, commands).await;
                }
                Err(error) => refuse(commands, &error.to_string()).await,
            }
        };
        Self::started_by(move |commands| {
            let (invitation, session) = (invitation.clone(), session.clone());
            platform::spawn_apart("relay", move || work(invitation, session, commands));
        })
    }

    fn started_by(start: impl Fn(mpsc::UnboundedReceiver<Command>) + 'static) -> Self {
        Self { commands: OnceCell::new(), start: Box::new(start) }
    }

    /// A new connection to `peer`; it does as [`crate::Connector::connect`] says.
    pub fn connect(&self, peer: NodeId, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        let commands = self.commands.get_or_init(|| {
            let (commands, receiver) = mpsc::unbounded();
            (self.start)(receiver);
            commands
        });
        let (events, receiver) = mpsc::unbounded();
        let ((control, control_frames), (bulk, bulk_frames)) = (mpsc::unbounded(), mpsc::unbounded());
        let keys = KeyPair::new();
        let (number, key) = (keys.mailbox(), keys.public());
        let state = State::Waiting(keys, [control_frames, bulk_frames]);
        let opened = commands.unbounded_send(Command::Open(number, Mailbox { peer, is_offerer, key, is_described: false, events: events.clone(), state }));
        if opened.is_err() {
            let _ = events.unbounded_send(ConnectionEvent::Closed("the relay of this device has ended: join again".into()));
        }
        (Box::new(RelayConnection { commands: commands.clone(), number, frames: [control, bulk] }), receiver)
    }
}

struct RelayConnection {
    commands: mpsc::UnboundedSender<Command>,
    number: u64,
    frames: [mpsc::UnboundedSender<Vec<u8>>; 2],
}

impl Connection for RelayConnection {
    fn set_remote(&self, description: Description) {
        let _ = self.commands.unbounded_send(Command::Remote(self.number, description.sdp));
    }

    fn add_candidate(&self, _: String) {}

    fn send(&self, plane: Plane, frame: Vec<u8>) {
        let _ = self.frames[plane.index()].unbounded_send(frame);
    }
}

impl Drop for RelayConnection {
    fn drop(&mut self) {
        let _ = self.commands.unbounded_send(Command::Close(self.number));
    }
}

/// The key in a relayed link's description, in the form the proof is taken over. The error is a sentence.
pub(crate) fn key(description: &str) -> Result<String, String> {
    seal::public_key(description).map(|_| description.to_ascii_lowercase())
}

/// Where nothing can be relayed, every connection ends with the reason.
async fn refuse(mut commands: mpsc::UnboundedReceiver<Command>, reason: &str) {
    while let Some(command) = commands.next().await {
        if let Command::Open(_, mailbox) = command {
            mailbox.say(ConnectionEvent::Closed(reason.to_owned()));
        }
    }
}

/// Serves the connections of a node until its connector and all of them are gone.
async fn serve<O: PostOffice + 'static>(office: O, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut desk = Desk { office: Rc::new(office), mailboxes: HashMap::new() };
    let mut inbox = Incoming::Closed;
    loop {
        // Open only for as long as there is something to expect.
        inbox = match inbox {
            Incoming::Closed if !desk.mailboxes.is_empty() => Incoming::Opening(desk.office.open().boxed_local()),
            Incoming::Opening(_) | Incoming::Open(_) if desk.mailboxes.is_empty() => Incoming::Closed,
            same => same,
        };
        select! {
            command = commands.next() => match command {
                Some(command) => desk.obey(command, matches!(inbox, Incoming::Open(_))),
                None => return,
            },
            event = inbox.next().fuse() => match event {
                Ok(None) => desk.mailboxes.values_mut().for_each(Mailbox::describe_if_ready),
                Ok(Some(parcel)) => desk.take(&parcel),
                Err(reason) => {
                    inbox = Incoming::Closed;
                    desk.mailboxes.drain().for_each(|(_, mailbox)| mailbox.say(ConnectionEvent::Closed(reason.clone())));
                }
            },
        }
    }
}

enum Incoming {
    Closed,
    Opening(LocalBoxFuture<'static, Result<Inbox, String>>),
    Open(Inbox),
}

impl Incoming {
    /// A parcel; nothing when the inbox has just opened; or why it ended.
    async fn next(&mut self) -> Result<Option<Parcel>, String> {
        match self {
            Self::Closed => std::future::pending().await,
            Self::Opening(opening) => {
                let opened = opening.await;
                *self = opened.map(Self::Open)?;
                Ok(None)
            }
            Self::Open(inbox) => inbox.next().await.unwrap_or_else(|| Err("the server ended the relay".into())).map(Some),
        }
    }
}

struct Desk<O> {
    office: Rc<O>,
    mailboxes: HashMap<u64, Mailbox>,
}

impl<O: PostOffice + 'static> Desk<O> {
    fn obey(&mut self, command: Command, is_inbox_open: bool) {
        match command {
            Command::Open(number, mut mailbox) => {
                if is_inbox_open {
                    mailbox.describe_if_ready();
                }
                self.mailboxes.insert(number, mailbox);
            }
            Command::Remote(number, key) => {
                if let Some(mailbox) = self.mailboxes.remove(&number) {
                    match self.agree(mailbox, &key) {
                        Ok(mut mailbox) => {
                            if is_inbox_open {
                                mailbox.describe_if_ready();
                            }
                            self.mailboxes.insert(number, mailbox);
                        }
                        Err((events, reason)) => drop(events.unbounded_send(ConnectionEvent::Closed(reason))),
                    }
                }
            }
            Command::Close(number) => drop(self.mailboxes.remove(&number)),
        }
    }

    /// The other end's key is known: from here on packets can be sealed.
    fn agree(&self, mailbox: Mailbox, key: &str) -> Result<Mailbox, (ConnectionEventsSender, String)> {
        let Mailbox { state: State::Waiting(keys, frames), peer, is_offerer, ref events, .. } = mailbox else { return Ok(mailbox) };
        let events = events.clone();
        let agreed = seal::public_key(key).map(|bytes| seal::mailbox(&bytes)).and_then(|number| Ok((number, keys.agree(key, is_offerer)?)));
        let (theirs, (sealers, openers)) = agreed.map_err(|reason| (events.clone(), reason))?;
        for ((plane, sealer), frames) in Plane::ALL.into_iter().zip(sealers).zip(frames) {
            let lane = Lane { to: peer, mailbox: theirs, plane, sealer, events: events.clone() };
            platform::spawn_local(lane.run(Rc::clone(&self.office), frames));
        }
        let mailbox = Mailbox { state: State::Agreed { openers, is_open: is_offerer }, peer, is_offerer, key: mailbox.key, is_described: mailbox.is_described, events };
        if is_offerer {
            mailbox.say_open();
        }
        Ok(mailbox)
    }

    /// Opens what came. Parcels that fit no mailbox are of links that are over.
    fn take(&mut self, parcel: &Parcel) {
        let Some(mailbox) = self.mailboxes.get_mut(&parcel.mailbox).filter(|mailbox| mailbox.peer == parcel.from) else { return };
        if let Err(reason) = mailbox.take(parcel) {
            mailbox.say(ConnectionEvent::Closed(reason));
            self.mailboxes.remove(&parcel.mailbox);
        }
    }
}

impl Mailbox {
    fn say(&self, event: ConnectionEvent) {
        let _ = self.events.unbounded_send(event);
    }

    fn say_open(&self) {
        Plane::ALL.into_iter().for_each(|plane| self.say(ConnectionEvent::Open(plane)));
    }

    /// Once the inbox is open, our key may be told: an offerer's at once, an answerer's when it has the other.
    fn describe_if_ready(&mut self) {
        if self.is_described || !(self.is_offerer || matches!(self.state, State::Agreed { .. })) {
            return;
        }
        self.is_described = true;
        let kind = if self.is_offerer { DescriptionKind::Offer } else { DescriptionKind::Answer };
        self.say(ConnectionEvent::LocalDescription(Description { kind, sdp: self.key.clone() }));
    }

    /// The error is why the connection is over.
    fn take(&mut self, parcel: &Parcel) -> Result<(), String> {
        const BROKEN: &str = "a sealed packet was changed, repeated or left out on its way through the server";
        let State::Agreed { openers, is_open } = &mut self.state else { return Err("the other device sent before it had this device's key".into()) };
        let plane = Plane::ALL.into_iter().find(|plane| plane.index() == usize::from(parcel.plane)).ok_or(BROKEN)?;
        for packet in parcel.packets() {
            let frame = packet.and_then(|packet| openers[plane.index()].open(packet)).ok_or(BROKEN)?;
            if frame.is_empty() {
                return Err("the other device closed the link".into());
            }
            if !std::mem::replace(is_open, true) {
                Plane::ALL.into_iter().for_each(|plane| drop(self.events.unbounded_send(ConnectionEvent::Open(plane))));
            }
            let _ = self.events.unbounded_send(ConnectionEvent::Message(plane, Bytes::from(frame)));
        }
        Ok(())
    }
}

/// The way out of one plane of one connection.
struct Lane {
    to: NodeId,
    mailbox: u64,
    plane: Plane,
    sealer: Sealer,
    events: ConnectionEventsSender,
}

impl Lane {
    /// Posts what the link sends, as much at a time as is there and a parcel takes, one parcel after the other. What of the
    /// control plane is left when the link lets go is still posted, and then the farewell.
    async fn run<O: PostOffice>(mut self, office: Rc<O>, mut frames: mpsc::UnboundedReceiver<Vec<u8>>) {
        while let Some(first) = frames.next().await {
            if self.plane == Plane::Bulk && self.events.is_closed() {
                return;
            }
            let (mut parcel, mut bytes) = (Vec::new(), 0);
            let mut next = Some(first);
            while let Some(frame) = next {
                self.pack(&frame, &mut parcel);
                bytes += frame.len();
                let has_room = parcel.len() + MAX_PACKET_BYTES <= MAX_PARCEL_BYTES[self.plane.index()];
                next = if has_room { frames.try_recv().ok() } else { None };
            }
            if let Err(reason) = office.post(self.to, self.mailbox, self.plane, parcel).await {
                let _ = self.events.unbounded_send(ConnectionEvent::Closed(format!("the relay broke: {reason}")));
                return;
            }
            let _ = self.events.unbounded_send(ConnectionEvent::Sent(self.plane, bytes));
        }
        if self.plane == Plane::Control {
            let mut parcel = Vec::new();
            self.pack(&[], &mut parcel);
            // Whoever does not get it finds out by silence.
            let _ = office.post(self.to, self.mailbox, self.plane, parcel).await;
        }
    }

    fn pack(&mut self, frame: &[u8], parcel: &mut Vec<u8>) {
        parcel.extend_from_slice(&((frame.len() + SEAL_BYTES) as u32).to_le_bytes());
        self.sealer.seal(frame, parcel);
    }
}
