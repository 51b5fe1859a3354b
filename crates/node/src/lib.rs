//! The async driver that joins core, engine and transport in one node.
