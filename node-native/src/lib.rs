//! The native node, for computers that need no browser.

pub mod files;
