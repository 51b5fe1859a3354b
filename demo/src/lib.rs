//! Makes the demo's base model and personal data set from a seeded grammar of homes.

pub mod action;
pub mod corpus;
pub mod household;
pub mod phrases;
pub mod pretrain;
pub mod tune;
pub mod vocabulary;
pub mod words;
