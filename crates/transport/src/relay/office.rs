//! Who carries sealed parcels: the home server, or memory in tests.

use crate::connection::Plane;
use crate::http::Http;
use crate::platform;
use barycenter_protocol::NodeId;
use barycenter_protocol::relay::{Parcel, Parcels};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::LocalBoxStream;

/// A household's server answers at once or not at all.
const OPEN_TIMEOUT_MILLIS: u32 = 5_000;

/// Parcels for this node, and after the last the reason for the end.
pub type Inbox = LocalBoxStream<'static, Result<Parcel, String>>;

/// Carries parcels between nodes of one room.
///
/// 1. Parcels of one sender, mailbox and plane arrive in the order in which they were posted, each once, or the inbox ends.
/// 2. `post` ends when the carrier has the parcel; waiting is the back-pressure. Only one parcel per mailbox and plane is
///    posted at a time.
/// 3. Errors are sentences for people.
pub trait PostOffice {
    /// Opens this node's inbox. When it is open, what others post arrives.
    fn open(&self) -> impl Future<Output = Result<Inbox, String>> + 'static;

    /// Gives a parcel to the mailbox of another node.
    fn post(&self, to: NodeId, mailbox: u64, plane: Plane, parcel: Vec<u8>) -> impl Future<Output = Result<(), String>> + 'static;
}

/// The home server.
pub struct Server {
    /// With the session of the stay.
    pub http: Http,
    /// This node.
    pub node: NodeId,
}

impl PostOffice for Server {
    fn open(&self) -> impl Future<Output = Result<Inbox, String>> + 'static {
        let (http, path) = (self.http.clone(), format!("/api/nodes/{}/relay", self.node));
        async move {
            let opened = platform::timeout(OPEN_TIMEOUT_MILLIS, http.get_stream(&path)).await;
            let pieces = opened.ok_or("the server did not answer")?.map_err(|error| error.to_string())?;
            Ok(parcels(pieces).boxed_local())
        }
    }

    fn post(&self, to: NodeId, mailbox: u64, plane: Plane, parcel: Vec<u8>) -> impl Future<Output = Result<(), String>> + 'static {
        let (http, path) = (self.http.clone(), format!("/api/nodes/{}/relay/{to}/{mailbox:016x}/{}", self.node, plane.label()));
        async move { http.post_bytes(&path, parcel.into()).await.map_err(|error| error.to_string()) }
    }
}

/// Cuts a body into parcels.
fn parcels(pieces: LocalBoxStream<'static, Result<Bytes, String>>) -> impl futures::Stream<Item = Result<Parcel, String>> {
    let state = Some((pieces, Parcels::default()));
    futures::stream::unfold(state, |state| async move {
        let (mut pieces, mut parcels) = state?;
        loop {
            match parcels.take() {
                Ok(Some(parcel)) => return Some((Ok(parcel), Some((pieces, parcels)))),
                Ok(None) => {}
                Err(error) => return Some((Err(error.to_string()), None)),
            }
            match pieces.next().await? {
                Ok(bytes) => parcels.push(&bytes),
                Err(reason) => return Some((Err(reason), None)),
            }
        }
    })
}
