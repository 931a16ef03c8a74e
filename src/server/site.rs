//! What a worker's [`Site`] is made of, on its way to the worker's thread.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use crate::app::Router;
use crate::http::OnFailure;
use crate::http::limits::Limits;
use crate::http::site::{AccessLog, HalfClose, Lines, Mode, RequestIds, Site, builder};
use crate::http::watch::Watch;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::reactor::cancel::CancellationToken;

/// A site's parts. Unlike the site, it can be sent to another thread.
#[derive(Clone)]
pub struct SiteSetup {
    pub limits: Limits,
    pub router: Router,
    pub ledger: Arc<Ledger>,
    pub watch: Arc<Watch>,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub on_failure: Option<OnFailure>,
    pub half_close: HalfClose,
    pub id_prefix: u64,
    pub shutdown: CancellationToken,
}

impl SiteSetup {
    pub fn into_site(self, now: Instant) -> Site {
        Site {
            builder: builder(&self.limits),
            app: self.router.into_app(),
            ledger: self.ledger,
            watch: self.watch,
            metrics: RefCell::new(self.metrics.worker()),
            answered: RefCell::default(),
            access_log: self.access_log,
            on_failure: self.on_failure,
            hot: Cell::new(0),
            last_host: RefCell::default(),
            ids: RequestIds::new(self.id_prefix),
            epoch: now,
            shutdown: self.shutdown,
            half_close: self.half_close,
            lines: Lines::new(&self.limits),
            mode: Cell::new(Mode::Serving),
            now: Cell::new(now),
            #[cfg(test)]
            fault: Cell::default(),
            limits: self.limits,
        }
    }
}
