//! The metrics of a build that has none: the same face, and nothing behind it.

use http::Method;

use super::Facts;

/// Keeps nothing: this build has no metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics;

impl Metrics {
    /// Metrics that are never filled.
    pub fn new() -> Self {
        Self
    }

    /// A worker's metrics that are never filled.
    pub fn worker(&self) -> WorkerMetrics {
        WorkerMetrics
    }

    /// An exposition without metrics: a comment that says why.
    pub fn render(&self, _facts: &Facts) -> String {
        "# This build has no metrics: it was made without the feature \"metrics\".\n".into()
    }
}

/// Observes nothing: this build has no metrics.
#[derive(Debug)]
pub struct WorkerMetrics;

impl WorkerMetrics {
    /// Does nothing.
    pub fn request(&mut self, _method: &Method, _code: u16, _seconds: f64) {}

    /// Does nothing.
    pub fn requests(&mut self, _method: &Method, _code: u16, _seconds: f64, _count: u32) {}

    /// Does nothing.
    pub fn turn(&mut self, _seconds: f64) {}

    /// Does nothing.
    pub fn flush(&mut self) {}

    /// Always false: there is nothing to flush.
    pub fn is_dirty(&self) -> bool {
        false
    }
}
