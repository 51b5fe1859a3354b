//! Storage in the origin's private file system, through the synchronous handles that Workers have.
//!
//! The bindings are looked up by name: `web-sys` still counts these interfaces as unstable.

use barycenter_node::storage::{Storage, StorageError, StorageFile};
use futures::future::LocalBoxFuture;
use js_sys::{Function, Object, Promise, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

/// A folder of the origin's private file system.
pub struct OpfsStorage {
    directory: JsValue,
}

impl OpfsStorage {
    /// Opens (or makes) the folder of one device.
    pub async fn open(folder: &str) -> Result<Self, StorageError> {
        let navigator = get(&js_sys::global(), "navigator")?;
        let storage = get(&navigator, "storage")?;
        let root = call(&storage, "getDirectory", &[]).await?;
        let directory = call(&root, "getDirectoryHandle", &[folder.into(), create()]).await?;
        Ok(Self { directory })
    }
}

impl Storage for OpfsStorage {
    fn open(&self, name: &str) -> LocalBoxFuture<'_, Result<Box<dyn StorageFile>, StorageError>> {
        let name = JsValue::from_str(name);
        Box::pin(async move {
            let file = call(&self.directory, "getFileHandle", &[name, create()]).await?;
            let handle = call(&file, "createSyncAccessHandle", &[]).await?;
            Ok(Box::new(OpfsFile { handle }) as Box<dyn StorageFile>)
        })
    }

    fn list(&self) -> LocalBoxFuture<'_, Result<Vec<(String, u64)>, StorageError>> {
        Box::pin(async move {
            let entries = invoke(&self.directory, "entries", &[])?;
            let mut files = Vec::new();
            loop {
                let next = call(&entries, "next", &[]).await?;
                if get(&next, "done")?.is_truthy() {
                    return Ok(files);
                }
                let pair = get(&next, "value")?;
                let name = Reflect::get_u32(&pair, 0).ok().and_then(|n| n.as_string()).unwrap_or_default();
                let handle = Reflect::get_u32(&pair, 1).map_err(|e| describe(&e))?;
                if get(&handle, "kind")?.as_string().as_deref() == Some("file") {
                    let file = call(&handle, "getFile", &[]).await?;
                    files.push((name, get(&file, "size")?.as_f64().unwrap_or(0.0) as u64));
                }
            }
        })
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'_, Result<(), StorageError>> {
        let name = JsValue::from_str(name);
        Box::pin(async move {
            // An absent file is no error; a file in use stays.
            let _ = call(&self.directory, "removeEntry", &[name]).await;
            Ok(())
        })
    }
}

/// An open `FileSystemSyncAccessHandle`; closed when dropped, since a file can be open only once.
struct OpfsFile {
    handle: JsValue,
}

impl Drop for OpfsFile {
    fn drop(&mut self) {
        let _ = invoke(&self.handle, "close", &[]);
    }
}

impl StorageFile for OpfsFile {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(invoke(&self.handle, "getSize", &[])?.as_f64().unwrap_or(0.0) as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let buffer = Uint8Array::new_with_length(into.len() as u32);
        let read = invoke(&self.handle, "read", &[buffer.clone().into(), at(offset)])?;
        if read.as_f64() != Some(into.len() as f64) {
            return Err(StorageError::Failed("read past the end".into()));
        }
        buffer.copy_to(into);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let written = invoke(&self.handle, "write", &[Uint8Array::from(bytes).into(), at(offset)])?;
        if written.as_f64() != Some(bytes.len() as f64) {
            return Err(StorageError::Full("the browser stored less than it was given".into()));
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), StorageError> {
        invoke(&self.handle, "truncate", &[JsValue::from_f64(len as f64)]).map(drop)
    }

    fn flush(&self) -> Result<(), StorageError> {
        invoke(&self.handle, "flush", &[]).map(drop)
    }
}

fn at(offset: u64) -> JsValue {
    let options = Object::new();
    let _ = Reflect::set(&options, &"at".into(), &JsValue::from_f64(offset as f64));
    options.into()
}

fn create() -> JsValue {
    let options = Object::new();
    let _ = Reflect::set(&options, &"create".into(), &JsValue::TRUE);
    options.into()
}

fn get(object: &JsValue, name: &str) -> Result<JsValue, StorageError> {
    Reflect::get(object, &name.into()).map_err(|e| describe(&e))
}

fn invoke(object: &JsValue, name: &str, arguments: &[JsValue]) -> Result<JsValue, StorageError> {
    let function: Function = get(object, name)?.dyn_into().map_err(|_| StorageError::Failed(format!("this browser has no {name}: update it")))?;
    let list: js_sys::Array = arguments.iter().collect();
    function.apply(object, &list).map_err(|e| describe(&e))
}

async fn call(object: &JsValue, name: &str, arguments: &[JsValue]) -> Result<JsValue, StorageError> {
    let promise: Promise = invoke(object, name, arguments)?.dyn_into().map_err(|_| StorageError::Failed(format!("{name} gave no promise")))?;
    JsFuture::from(promise).await.map_err(|e| describe(&e))
}

fn describe(error: &JsValue) -> StorageError {
    let text = |name: &str| Reflect::get(error, &name.into()).ok().and_then(|value| value.as_string()).unwrap_or_default();
    let sentence = format!("{}: {}", text("name"), text("message"));
    if text("name") == "QuotaExceededError" { StorageError::Full(sentence) } else { StorageError::Failed(sentence) }
}
