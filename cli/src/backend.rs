//! The back end of the commands that compute here: a graphics card's kernels are tuned once, and remembered in the data
//! folder.

use anyhow::Result;
use barycenter_engine::{BackendChoice, Device};
use barycenter_node::device::open_device;
use barycenter_node::storage::{MemoryStorage, Storage};
use barycenter_node_native::files::FolderStorage;

/// Opens the back end that was asked for.
pub async fn create_backend(choice: BackendChoice) -> Result<Device> {
    let storage: Box<dyn Storage> = if choice == BackendChoice::Cpu {
        // Nothing is tuned, so nothing needs to be kept.
        Box::new(MemoryStorage::default())
    } else {
        let folder = barycenter_server::DataDir::default_path().join("device");
        match FolderStorage::new(&folder) {
            Ok(storage) => Box::new(storage),
            Err(error) => {
                log::warn!("the folder {} cannot be used ({error}): what is measured of this device is not kept", folder.display());
                Box::new(MemoryStorage::default())
            }
        }
    };
    Ok(open_device(choice, storage.as_ref()).await?)
}
