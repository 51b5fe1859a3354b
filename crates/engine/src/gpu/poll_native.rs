//! Native waiting: a thread that blocks on the device, so that the caller's does not.

use std::sync::mpsc::{Sender, channel};

/// Owner of the polling thread, which ends when this is dropped.
pub struct Poller(Sender<wgpu::SubmissionIndex>);

impl Poller {
    /// Starts the thread.
    pub fn new(device: &wgpu::Device) -> Self {
        let device = device.clone();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for submission in receiver {
                // An error means a lost device: its callbacks have been told.
                let _ = device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None });
            }
        });
        Self(sender)
    }

    /// Has callbacks called once the submission is done.
    pub fn wait_for(&self, submission: wgpu::SubmissionIndex) {
        // The receiver lives as long as the sender.
        let _ = self.0.send(submission);
    }
}
