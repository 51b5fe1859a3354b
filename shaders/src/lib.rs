//! The WGSL kernels of Barycenter, listed and validated.
