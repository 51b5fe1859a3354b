//! The household's server: pages, pairing, weights, datasets, runs; hosts the coordinator.
