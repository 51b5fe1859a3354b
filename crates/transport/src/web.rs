//! Connections through the page.
