//! What a worker's [`Site`] is made of, on its way to the worker's thread.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use crate::app::Router;
use crate::http::OnFailure;
use crate::http::limits::Limits;
use crate::http::site::{AccessLog, Delivery, HalfClose, Lines, Mode, RequestIds, Site, builder};
use crate::http::watch::Watch;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::reactor::cancel::CancellationToken;

/// A site's parts. Unlike the site, it can be sent to another thread.
#[derive(Clone, Debug)]
pub struct SiteSetup {
    /// What a client may send, and how slowly.
    pub limits: Limits,
    /// What answers the requests.
    pub router: Router,
    /// The worker's books.
    pub ledger: Arc<Ledger>,
    /// What the worker is working on, for control to read.
    pub watch: Arc<Watch>,
    /// The process's; the site has the worker's share of them.
    pub metrics: Metrics,
    /// Whether each finished request is logged.
    pub access_log: AccessLog,
    /// Who is told of failures.
    pub on_failure: Option<OnFailure>,
    /// What a client's FIN means for its request.
    pub half_close: HalfClose,
    /// Of the ids of requests that brought none.
    pub id_prefix: u64,
    /// Who sees to it that last responses are delivered.
    pub delivery: Delivery,
    /// Fires when handlers are to come to an end.
    pub shutdown: CancellationToken,
}

impl SiteSetup {
    /// On the worker's thread, whose clock says `now`.
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
            delivery: Cell::new(self.delivery),
            now: Cell::new(now),
            #[cfg(test)]
            fault: Cell::default(),
            limits: self.limits,
        }
    }
}
