//! The server: workers, listeners and control put together. The only module that sees everything.

mod address;
mod balance;
mod closing;
mod control;
mod data;
mod dealer;
mod elders;
pub mod endpoint;
pub(crate) mod entrance;
mod error;
mod handle;
mod holders;
mod hooks;
mod hunch;
mod inherited;
mod listed;
mod listener;
mod manager;
mod narrate;
mod options;
mod orphans;
pub mod site;
mod slot;
mod trim;
mod view;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

pub use self::address::{Address, AddressError};
use self::balance::Shares;
use self::control::{ADMIN_SPACE, Control, ControlMail, signals_key};
use self::dealer::Dealer;
use self::elders::Elders;
use self::endpoint::{Command, Endpoint};
use self::entrance::Capacity;
pub use self::error::StartError;
use self::handle::Joined;
pub use self::handle::{ActiveWork, GracefulShutdown, Snapshot};
pub use self::inherited::{InheritedListeners, inherited_listeners};
use self::listener::{AllBound, Bound, PortUse};
pub use self::manager::{ServiceManager, service_manager};
pub use self::options::{HealthOn, Options, Workers};
use self::orphans::Orphans;
use self::site::SiteSetup;
use self::trim::Trim;
use self::view::WorkerView;
use self::worker::{Dealing, PUBLIC_SPACE, Pulse, WorkerMail, WorkerSetup};
use crate::app::admin::{self, Readers};
use crate::app::router::Router;
use crate::app::status::Status;
use crate::cleanup::Cleanup;
use crate::drain::Drain;
use crate::http::site::{AccessLog, Delivery, HalfClose};
use crate::ledger::{Counts, Ledger};
use crate::metrics::Metrics;
use crate::reactor::blocking::Pool;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::turn::Reactor;
use crate::report::Report;
use crate::signals::Signals;

/// A server that holds its addresses and does not serve yet.
pub struct Server {
    options: Options,
    bound: AllBound,
    /// The public addresses as they are bound.
    addresses: Vec<Address>,
    /// `None` where they cannot be seen, and none are made then.
    orphans: Option<Orphans>,
    admin_bound: AllBound,
    reactor: Reactor,
    mailbox: Mailbox<ControlMail>,
    signals: Option<Signals>,
    manager: Option<ServiceManager>,
    views: Vec<(SiteSetup, Arc<Pulse>)>,
    status: Arc<Status>,
    handle: Joined,
    connections_max: usize,
}

impl Server {
    /// Binds the addresses. Clients are refused until [`run`](Server::run).
    ///
    /// # Errors
    /// [`StartError::Listen`] names the address that is in use or not ours; [`StartError::System`]
    /// what else is missing.
    pub fn bind(options: Options, router: Router) -> Result<Server, StartError> {
        Server::bind_inheriting(options, InheritedListeners::default(), router)
    }

    /// As [`bind`](Server::bind), with the sockets that [`Address::Inherited`] in
    /// [`Options::listen`] stands for; they are closed if it is not there.
    ///
    /// What is queued in them is served at once. When the server shuts down it stops accepting from
    /// them and closes its copies: what is queued then is for whoever shares them.
    ///
    /// # Errors
    /// As [`bind`](Server::bind); also when `listen` has [`Address::Inherited`] and there are no
    /// sockets.
    pub fn bind_inheriting(
        options: Options,
        inherited: InheritedListeners,
        router: Router,
    ) -> Result<Server, StartError> {
        let reactor = Reactor::new()
            .map_err(|source| StartError::System { what: "open an epoll instance", source })?;
        let mailbox = Mailbox::new(Arc::clone(reactor.remote()));
        let port_use = if options.reuse_port { PortUse::Shared } else { PortUse::Alone };
        let workers = options.workers.count();
        let bound = AllBound::bind(&options.listen, workers.max(1), port_use, inherited)?;
        let admin: Vec<Address> = options.admin_listen.iter().cloned().collect();
        let admin_bound = AllBound::bind(&admin, 1, PortUse::Alone, InheritedListeners::default())?;

        let metrics = Metrics::new();
        let ledgers: Vec<Arc<Ledger>> = (0..workers.max(1)).map(|_| Arc::default()).collect();
        let dropped = options.log_lines_dropped.clone().unwrap_or_default();
        let status =
            Arc::new(Status::new(ledgers.clone(), metrics.clone(), dropped, reactor.now()));
        let router = match options.health_on {
            HealthOn::Public => admin::with_health(router, &status, Readers::Anybody),
            HealthOn::AdminOnly => router,
        };
        let handle = GracefulShutdown::new(options.shutdown.timeout);
        let prefix = id_prefix();
        let orphans = Orphans::at(&bound.addresses);
        let delivery = orphans.as_ref().map_or(Delivery::Ours, |_| Delivery::OursYet);
        let views = (0u64..).zip(ledgers).map(|(index, ledger)| {
            let site = SiteSetup {
                limits: options.limits.clone().bounded(),
                router: router.clone(),
                ledger,
                watch: Arc::default(),
                metrics: metrics.clone(),
                half_close: options.client_half_close,
                access_log: if options.access_log { AccessLog::On } else { AccessLog::Off },
                on_failure: options.on_failure.clone(),
                id_prefix: prefix.wrapping_add(index),
                delivery,
                shutdown: handle.cancellation(),
            };
            (site, Pulse::new(reactor.now()))
        });
        Ok(Server {
            views: views.collect(),
            handle: handle.join(mailbox.clone(), Arc::clone(&status))?,
            connections_max: options.connections_max(),
            signals: None,
            manager: None,
            options,
            addresses: bound.addresses.clone(),
            orphans,
            bound,
            admin_bound,
            reactor,
            mailbox,
            status,
        })
    }

    /// Shuts down on the process's signals (see the README's table). Without, only the handle does.
    #[must_use]
    pub fn with_signals(mut self, signals: Signals) -> Server {
        self.signals = Some(signals);
        self
    }

    /// Tells the service manager how the server is.
    #[must_use]
    pub fn with_service_manager(mut self, manager: ServiceManager) -> Server {
        self.manager = Some(manager);
        self
    }

    /// The handle that watches and ends this server.
    pub fn shutdown_handle(&self) -> GracefulShutdown {
        self.handle.handle().clone()
    }

    /// Steers this server by a handle that was made before it, in the place of its own. The
    /// handle's timeout replaces that of [`Options::shutdown`].
    ///
    /// # Errors
    /// [`StartError::HandleInUse`]: a handle steers one server.
    pub fn with_shutdown(mut self, handle: &GracefulShutdown) -> Result<Server, StartError> {
        self.handle = handle.join(self.mailbox.clone(), Arc::clone(&self.status))?;
        self.options.shutdown.timeout = handle.timeout();
        for (site, _) in &mut self.views {
            site.shutdown = handle.cancellation();
        }
        Ok(self)
    }

    /// The addresses it is bound to, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<Address> {
        self.addresses.clone()
    }

    /// The admin listener's address.
    pub fn admin_address(&self) -> Option<Address> {
        self.admin_bound.addresses.first().cloned()
    }

    /// Serves until the shutdown is over, with control on the calling thread.
    ///
    /// # Errors
    /// [`StartError`] when a listener or a thread cannot start; the others are stopped again.
    ///
    /// # Panics
    /// When the calling thread runs a reactor already: in a handler.
    pub fn run(mut self) -> Result<Report, StartError> {
        let blocking = Pool::new(self.options.blocking_threads);
        let capacity = Capacity::new(self.connections_max);
        let listen = join(&self.addresses);
        let admin = self.admin_address().map_or("off".to_owned(), |address| address.to_string());
        let workers = self.options.workers.count();
        let entered = self.reactor.enter(blocking.clone());
        let mut control = self.control()?;
        self.add_closing_hooks();
        let started = if workers == 0 {
            self.start_here(&mut control, &capacity)
        } else {
            self.start_workers(&mut control, &capacity, &blocking)
        };
        if let Err(error) = started {
            leave(&control);
            return Err(error);
        }
        control.look_for_elders(self.reactor.now());
        self.status.set_listening();
        self.handle.handle().set_listening();
        control.say_ready(self.reactor.now());
        narrate::started(&listen, &admin, workers, self.connections_max);
        while control.verdict.is_none() {
            self.reactor
                .turn(&mut control)
                .map_err(|source| StartError::System { what: "wait for events", source })?;
        }
        let report = control.report(self.reactor.now(), wall_clock());
        leave(&control);
        blocking.close();
        drop(control);
        drop(entered);
        if let Some(path) = &self.options.report_path {
            closing::write(&report, path);
        }
        narrate::report(&report);
        self.handle.handle().set_finished(&report);
        Ok(report)
    }

    /// Control with its admin endpoint and the signal pipe, and no worker yet.
    fn control(&mut self) -> Result<Control, StartError> {
        let now = self.reactor.now();
        let mut control = Control {
            drain: Drain::new(self.options.shutdown.clone()),
            mailbox: self.mailbox.clone(),
            signals: self.signals.take(),
            manager: self.manager.take(),
            admin: None,
            public: None,
            dealer: None,
            shares: None,
            elders: self.options.reuse_port.then(|| Elders::at(&self.addresses)),
            orphans: self.orphans.take(),
            undelivered: 0,
            workers: Vec::new(),
            status: Arc::clone(&self.status),
            handle: self.shutdown_handle(),
            cleanup: Cleanup::default(),
            hooks_told: 0,
            cancelled_jobs: None,
            phases: Vec::new(),
            reason: String::new(),
            at_shutdown: Counts::default(),
            next_tick: now + Duration::from_secs(1),
            next_look: now + Duration::from_secs(1),
            trim: Trim::default(),
            said_quiet: false,
            verdict: None,
        };
        if let Some(signals) = &mut control.signals {
            let watched = self.reactor.watch(signals.source(), signals_key());
            watched.map_err(|source| StartError::System { what: "watch for signals", source })?;
        }
        let bound = std::mem::take(&mut self.admin_bound).into_one();
        if !bound.is_empty() {
            let site = SiteSetup {
                limits: crate::http::Limits::default(),
                router: admin::router(&self.status, holders::asking(self.mailbox.clone())),
                ledger: Arc::default(),
                watch: Arc::default(),
                metrics: Metrics::new(),
                half_close: HalfClose::Cancel,
                access_log: AccessLog::Off,
                on_failure: None,
                id_prefix: 0,
                delivery: Delivery::Ours,
                shutdown: self.shutdown_handle().cancellation(),
            };
            let capacity = Capacity::new(ADMIN_CONNECTIONS_MAX);
            let mut admin = self.endpoint(ADMIN_SPACE, site, capacity)?;
            admin.listen(bound)?;
            control.admin = Some(admin);
        }
        Ok(control)
    }

    fn endpoint(
        &self,
        space: u8,
        site: SiteSetup,
        capacity: Arc<Capacity>,
    ) -> Result<Endpoint, StartError> {
        let registrar = self
            .reactor
            .registrar()
            .map_err(|source| StartError::System { what: "duplicate a descriptor", source })?;
        let remote = Arc::clone(self.reactor.remote());
        Ok(Endpoint::new(space, site.into_site(self.reactor.now()), remote, registrar, capacity))
    }

    /// `workers = 0`: the public endpoint on this thread.
    fn start_here(
        &mut self,
        control: &mut Control,
        capacity: &Arc<Capacity>,
    ) -> Result<(), StartError> {
        let bound = std::mem::take(&mut self.bound).into_one();
        let Some((site, pulse)) = self.views.pop() else { return Ok(()) };
        control.workers.push(WorkerView::new(&site, &pulse));
        let mut public = self.endpoint(PUBLIC_SPACE, site, Arc::clone(capacity))?;
        public.listen(bound)?;
        control.public = Some(public);
        Ok(())
    }

    fn start_workers(
        &mut self,
        control: &mut Control,
        capacity: &Arc<Capacity>,
        blocking: &Pool,
    ) -> Result<(), StartError> {
        let mut waiting = Vec::new();
        let views = std::mem::take(&mut self.views).into_iter();
        let AllBound { own, dealt, .. } = std::mem::take(&mut self.bound);
        let dealing = if dealt.is_empty() { Dealing::No } else { Dealing::Yes };
        let shares = Shares::new(views.len());
        control.shares = Some(Arc::clone(&shares));
        for (index, ((site, pulse), bound)) in views.zip(own).enumerate() {
            let (sender, receiver) = mpsc::channel();
            let known = WorkerView::new(&site, &pulse);
            let setup = WorkerSetup {
                index,
                site,
                bound,
                dealing,
                shares: Arc::clone(&shares),
                capacity: Arc::clone(capacity),
                control: self.mailbox.clone(),
                pulse,
                blocking: blocking.clone(),
            };
            std::thread::Builder::new()
                .name(format!("ebbtide-worker-{index}"))
                .spawn(move || worker::run(setup, &sender))
                .map_err(|source| StartError::System { what: "start a worker thread", source })?;
            waiting.push((known, receiver));
        }
        for (mut known, receiver) in waiting {
            let gone = || io::Error::other("it ended at once");
            let mailbox = receiver.recv().unwrap_or_else(|_| {
                Err(StartError::System { what: "start a worker thread", source: gone() })
            })?;
            known.mailbox = Some(mailbox);
            control.workers.push(known);
        }
        control.introduce_workers();
        if dealing == Dealing::Yes {
            control.dealer = Some(self.dealer(control, dealt, capacity)?);
        }
        Ok(())
    }

    fn dealer(
        &self,
        control: &Control,
        dealt: Vec<Bound>,
        capacity: &Arc<Capacity>,
    ) -> Result<Dealer, StartError> {
        let registrar = self
            .reactor
            .registrar()
            .map_err(|source| StartError::System { what: "duplicate a descriptor", source })?;
        let workers = control.workers.iter().filter_map(|worker| worker.mailbox.clone());
        Dealer::listen(dealt, workers, Arc::clone(capacity), &registrar, self.reactor.now())
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// Ends the workers' threads. They are not waited for: one may be stuck.
fn leave(control: &Control) {
    for worker in &control.workers {
        if let Some(mailbox) = &worker.mailbox {
            mailbox.post(WorkerMail::Order(Command::Leave));
        }
    }
}

/// The date of the shutdown, for its report.
fn wall_clock() -> SystemTime {
    #[allow(clippy::disallowed_methods, reason = "a date, not a deadline; once per server")]
    SystemTime::now()
}

fn join(addresses: &[Address]) -> String {
    addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(",")
}

/// Differs between processes and between servers of one process.
fn id_prefix() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u64(SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// Connections that the admin listener takes.
const ADMIN_CONNECTIONS_MAX: usize = 256;
