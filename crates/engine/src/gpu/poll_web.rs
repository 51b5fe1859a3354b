//! Waiting in the browser: its event loop calls back by itself.

/// Nothing to own.
pub struct Poller;

impl Poller {
    /// Does nothing.
    pub fn new(_device: &wgpu::Device) -> Self {
        Self
    }

    /// Does nothing: the event loop polls.
    pub fn wait_for(&self, _submission: wgpu::SubmissionIndex) {}
}
