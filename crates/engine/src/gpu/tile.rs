//! The forms in which a device makes matrix products, and which one it makes which product with.

use serde::{Deserialize, Serialize};

/// Products of fewer elements than this are small: 32 tiles of 64 × 64, which leave part of a large device idle.
const LARGE_ELEMENTS: u64 = 32 * 64 * 64;

/// How a product is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tile {
    /// 32 × 32 a workgroup, in workgroup memory; 4 × 4 an invocation.
    Shared32,
    /// 64 × 64 a workgroup, in workgroup memory; 8 × 8 an invocation.
    Shared64,
    /// 4 × 4 an invocation, in registers alone; 8 × 8 of them a workgroup.
    Registers4,
    /// 8 × 8 an invocation, in registers alone; 8 × 8 of them a workgroup.
    Registers8,
    /// 16 × 16 an invocation, more than a graphics card's registers hold, but not more than a processor's first-level
    /// cache; 2 × 2 of them a workgroup.
    Registers16,
}

impl Tile {
    /// Every form.
    pub const ALL: [Self; 5] = [Self::Shared32, Self::Shared64, Self::Registers4, Self::Registers8, Self::Registers16];

    /// The forms worth trying, the one that is quickest to compile first.
    ///
    /// `emulated`: on a browser's software adapter, which emulates workgroup memory and barriers slowly and compiles in
    /// milliseconds. Lavapipe, the native one, takes seconds to compile the largest tile.
    pub(super) fn candidates(emulated: bool) -> &'static [Self] {
        if emulated {
            &[Self::Registers16, Self::Registers8, Self::Shared64]
        } else {
            &[Self::Shared64, Self::Shared32, Self::Registers4, Self::Registers8]
        }
    }
}

/// The form for small and for large products of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Of fewer elements than 32 tiles of 64 × 64 have.
    pub small: Tile,
    /// Of more.
    pub large: Tile,
}

impl Tuning {
    /// What is likely right before anything was measured.
    pub(super) fn unmeasured(emulated: bool) -> Self {
        if emulated {
            Self { small: Tile::Registers16, large: Tile::Registers16 }
        } else {
            Self { small: Tile::Shared32, large: Tile::Shared64 }
        }
    }

    /// One form for every product.
    pub fn always(tile: Tile) -> Self {
        Self { small: tile, large: tile }
    }

    pub(super) fn tile(self, m: u32, n: u32) -> Tile {
        if u64::from(m) * u64::from(n) < LARGE_ELEMENTS { self.small } else { self.large }
    }
}
