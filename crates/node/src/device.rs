//! Opens the back end with kernels tuned to this device, which the device's storage remembers.

use crate::storage::{Storage, StorageError};
use barycenter_engine::gpu::Tunings;
use barycenter_engine::{BackendChoice, BackendError, Device, create_tuned_backend};
use barycenter_transport::platform::now_millis;

/// File of the measured tunings.
const FILE: &str = "kernel-tunings.json";

/// Opens a back end. Its kernels are timed at a device's first visit only: what was found is kept in `storage`.
///
/// # Errors
/// Those of [`create_tuned_backend`]; storage that fails costs no more than the next measurement.
pub async fn open_device(choice: BackendChoice, storage: &dyn Storage) -> Result<Device, BackendError> {
    let mut known = read(storage).await.unwrap_or_else(|error| {
        log::warn!("the tunings of this device's kernels cannot be read: {error}");
        Tunings::default()
    });
    let (device, measured) = create_tuned_backend(choice, &mut known, &now_millis).await?;
    if measured && let Err(error) = write(storage, &known).await {
        log::warn!("the tuning of this device's kernels cannot be kept: {error}");
    }
    Ok(device)
}

async fn read(storage: &dyn Storage) -> Result<Tunings, StorageError> {
    let file = storage.open(FILE).await?;
    let mut text = vec![0; file.len()? as usize];
    file.read_at(0, &mut text)?;
    Ok(Tunings::from_json(&text))
}

async fn write(storage: &dyn Storage, known: &Tunings) -> Result<(), StorageError> {
    let file = storage.open(FILE).await?;
    let text = known.to_json();
    file.truncate(0)?;
    file.write_at(0, text.as_bytes())?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn tunings_are_kept_and_a_damaged_file_is_measured_anew() {
        futures::executor::block_on(async {
            let storage = MemoryStorage::default();
            assert_eq!(read(&storage).await.unwrap(), Tunings::default());
            let text = br#"{"a card":{"small":"registers4","large":"shared64"},"another":{"small":"shared32","large":"shared32"}}"#;
            let known = Tunings::from_json(text);
            assert_ne!(known, Tunings::default());
            write(&storage, &known).await.unwrap();
            assert_eq!(read(&storage).await.unwrap(), known);
            // A shorter text leaves nothing of the longer one behind.
            let fewer = Tunings::from_json(br#"{"a card":{"small":"registers4","large":"shared64"}}"#);
            write(&storage, &fewer).await.unwrap();
            assert_eq!(read(&storage).await.unwrap(), fewer);
            storage.open(FILE).await.unwrap().write_at(0, b"garbage").unwrap();
            assert_eq!(read(&storage).await.unwrap(), Tunings::default());
        });
    }
}
