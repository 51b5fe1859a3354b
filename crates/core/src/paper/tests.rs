//! The reproduction's figures, its calibration, its accounting and its planner.

mod accounting;
mod calibration;
mod planner;
mod reproduction;
