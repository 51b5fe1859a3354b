//! Planner, coordinator and node as sans-I/O state machines.
