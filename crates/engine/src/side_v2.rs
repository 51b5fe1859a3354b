//! Parallel adapters, version 2 (docs/METHOD.md): a side network beside an encoder that reads principal components of its
//! taps, for sentences and pairs of sentences with a class or a number.
//!
//! Each sentence goes through the frozen model by itself. What the side network reads of it is small enough to be kept for
//! every later epoch: an int8 for each component of each token, and the mean of each tap in half precision.
//!
//! ```text
//! z_i = c_i V_iᵀ (x_i − m_i)      a_0 = D_0 z_0 + A(g − 0.5)      s_i = a_{i−1} + D_i z_i      a_i = s_i + block(s_i)
//! y = norm(a_n)      u_j = Σ_i softmax(mix)_i e_{i,j} + U mean_j(y)
//! logits = H [ |u_1 − u_2|, u_1 ∘ u_2, mean(y), max(y) ]   of a pair,   H [ u_1, mean(y), max(y) ]   of a sentence
//! ```

mod cache;
mod components;
mod config;
mod eigen;
mod network;
mod sentences;
mod trainer;

pub use cache::{alignment, decode, encode, len_bytes};
pub use components::{Components, Moments};
pub use config::SideV2Config;
pub use eigen::symmetric_eigen;
pub use network::{Encoded, SideV2};
pub use sentences::Sentences;
pub use trainer::SideV2Trainer;
