//! Where a command writes: refused before the work if nothing could be written there, and never half-written.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Refuses what cannot become a folder that can be written to, and a folder that already holds one of the files.
pub fn check_folder(option: &str, folder: &Path, names: &[&str]) -> Result<()> {
    let shown = folder.display();
    ensure!(!folder.exists() || folder.is_dir(), "{option} {shown} is a file: give a folder, which is made if it is not there");
    if let Some(there) = names.iter().find(|name| folder.join(name).exists()) {
        bail!("{option} {shown} holds {there} already: give another folder, or move that one away");
    }
    check_writable(option, folder, folder)
}

/// Refuses a file that could not be written: a folder of that name, a folder around it that is not there or not writable.
pub fn check_file(option: &str, file: &Path) -> Result<()> {
    let shown = file.display();
    ensure!(!file.is_dir(), "{option} {shown} is a folder: give the name of a file");
    let folder = folder_of(file);
    ensure!(folder.is_dir(), "{option} {shown} cannot be written, because there is no folder {}: make it first", folder.display());
    if is_special(file) { Ok(()) } else { check_writable(option, file, folder) }
}

/// The same, and refuses a file that is there.
pub fn check_new_file(option: &str, file: &Path) -> Result<()> {
    check_file(option, file)?;
    ensure!(is_special(file) || !file.exists(), "{option} {} is there already: give another name, or move that file away", file.display());
    Ok(())
}

/// Writes a file whole or not at all.
pub fn write_file(file: &Path, bytes: &[u8]) -> Result<()> {
    if is_special(file) {
        return std::fs::write(file, bytes).with_context(|| format!("{} cannot be written", file.display()));
    }
    write_all(&[(file.to_path_buf(), bytes)])
}

/// Writes files into a folder, which is made if it is not there. None has its name before all are on the disk.
pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    write_all(&files.iter().map(|(name, bytes)| (folder.join(name), *bytes)).collect::<Vec<_>>())
}

fn write_all(files: &[(PathBuf, &[u8])]) -> Result<()> {
    let parts: Vec<PathBuf> = files.iter().map(|(file, _)| with_ending(file, ".part")).collect();
    let write = || {
        for ((file, bytes), part) in files.iter().zip(&parts) {
            std::fs::write(part, bytes).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        for ((file, _), part) in files.iter().zip(&parts) {
            std::fs::rename(part, file).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        Ok(())
    };
    let written = write();
    if written.is_err() {
        for part in &parts {
            let _ = std::fs::remove_file(part);
        }
    }
    written
}

/// The nearest folder that is there must take a file.
fn check_writable(option: &str, shown: &Path, folder: &Path) -> Result<()> {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let nearest = absolute.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    match tempfile::tempfile_in(nearest) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{option} {} cannot be written, because {} takes no files ({error}): give another place", shown.display(), nearest.display()),
    }
}

/// A pipe or device such as `/dev/stdout`: written as it is.
fn is_special(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|about| !about.is_file() && !about.is_dir())
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_names_once_all_are_written() {
        let place = tempfile::tempdir().expect("temporary");
        let folder = place.path().join("a/b");
        write_folder(&folder, &[("one", b"1"), ("two", b"2")]).expect("written");
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(&folder).expect("made").map(|entry| entry.expect("read").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["one", "two"]);
        // The second cannot take its name, for a folder that is not empty has it: nothing of either stays.
        std::fs::create_dir_all(folder.join("three/x")).expect("made");
        assert!(write_folder(&folder, &[("four", b"4"), ("three", b"3")]).is_err());
        assert!(names().iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{:?}", names());
    }

    #[test]
    fn places_that_take_nothing_are_refused_before() {
        let place = tempfile::tempdir().expect("temporary");
        let file = place.path().join("file");
        std::fs::write(&file, "x").expect("written");
        let said = |result: Result<()>| format!("{:#}", result.expect_err("refused"));
        assert!(said(check_folder("--out", &file, &[])).contains("is a file"));
        assert!(said(check_folder("--out", place.path(), &["file"])).contains("holds file already"));
        assert!(said(check_file("--json", place.path())).contains("is a folder"));
        assert!(said(check_file("--json", &place.path().join("none/x.json"))).contains("there is no folder"));
        assert!(said(check_new_file("--gguf", &file)).contains("is there already"));
        check_folder("--out", &place.path().join("new/one"), &["file"]).expect("can be made");
        check_new_file("--gguf", &place.path().join("new.gguf")).expect("can be written");
        assert_eq!(std::fs::read_dir(place.path()).expect("there").count(), 1, "asking leaves nothing behind");
        if cfg!(target_os = "linux") {
            assert!(said(check_folder("--out", Path::new("/proc/none/out"), &[])).contains("/proc takes no files"));
            check_file("--json", Path::new("/dev/stdout")).expect("a pipe is written as it is");
        }
    }
}
