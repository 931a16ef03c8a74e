//! The servers that are compared: who they are, where they come from, and how each is started for
//! equal work. One table.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::compare::answer::Asks;
use crate::compare::machine;
use crate::compare::measure::Measure;
use crate::ebbtide::Ebbtide;
use crate::root;
use crate::target::Launch;

/// A server.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    /// On the command line and in results.
    pub name: &'static str,
    /// In a sentence.
    pub what: &'static str,
    /// When it is there.
    pub comes: Comes,
    kind: Kind,
}

/// When a server is there to be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// Each time: cargo builds it, or every system has it.
    Always,
    /// Once it was installed.
    OnDemand,
}

/// How it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Ours, as it serves by default.
    Ebbtide,
    /// A program of `loadtest/peers/speed`, with these flags.
    Own(&'static [&'static str]),
    Nginx,
    H2o,
    Go,
    Uvicorn,
}

/// All of them, in the order of the tables. The first one is compared with the others.
pub const CONTENDERS: [Contender; 12] = [
    always("ebbtide", Kind::Ebbtide, "this server as it is by default, everything on"),
    always("floor", Kind::Own(&[]), "no server: a canned answer for each blank line, over epoll"),
    always("hyper", Kind::Own(&[]), "hyper on tokio, a current-thread runtime per core"),
    always(
        "hyper-flush",
        Kind::Own(&["--pipeline-flush"]),
        "the same with pipeline_flush, which LOSES RESPONSES",
    ),
    always("axum", Kind::Own(&[]), "axum::serve, a current-thread runtime per core"),
    always("ntex", Kind::Own(&[]), "ntex on tokio"),
    always("nginx", Kind::Nginx, "nginx of the system, return 200"),
    on_demand("actix", Kind::Own(&[]), "actix-web"),
    on_demand("may", Kind::Own(&[]), "may_minihttp: coroutines, no deadlines, never closes"),
    on_demand("h2o", Kind::H2o, "h2o of the system, a file"),
    on_demand("go", Kind::Go, "Go's net/http"),
    on_demand("uvicorn", Kind::Uvicorn, "FastAPI on uvicorn with uvloop and httptools"),
];

const fn always(name: &'static str, kind: Kind, what: &'static str) -> Contender {
    Contender { name, what, comes: Comes::Always, kind }
}

const fn on_demand(name: &'static str, kind: Kind, what: &'static str) -> Contender {
    Contender { name, what, comes: Comes::OnDemand, kind }
}

/// Whether servers that are not there are to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// Only what cargo builds.
    No,
    /// Whatever can be.
    Yes,
}

/// Where a server is to sit.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// Where to listen.
    pub address: SocketAddr,
    /// On how many cores.
    pub workers: usize,
    /// What its requests will ask for.
    pub asks: Asks,
    /// For its own files.
    pub directory: &'a Path,
}

impl Contender {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Contender> {
        CONTENDERS.into_iter().find(|contender| contender.name == name)
    }

    /// Whether the measure is one for it.
    pub fn takes(&self, measure: Measure) -> bool {
        match self.name {
            // It loses responses: nothing else of it is of interest, and nothing else differs.
            "hyper-flush" => measure == Measure::Pipelined,
            // It closes no connection, whatever a request asks.
            "may" => measure != Measure::Churn,
            _ => true,
        }
    }

    /// Its program, built or installed if that is asked for.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn find(&self, binary: Option<&Path>, install: Install) -> Result<PathBuf, String> {
        if self.kind == Kind::Ebbtide {
            let built = || Ebbtide::build().map_err(|fault| fault.to_string());
            return binary.map_or_else(built, |path| {
                std::path::absolute(path).map_err(|error| error.to_string())
            });
        }
        let is_built = matches!(self.kind, Kind::Own(_)) && self.comes == Comes::Always;
        if is_built || (install == Install::Yes && self.program().is_none()) {
            let installed = self.install();
            if let (Err(why), Some(program)) = (&installed, self.program()) {
                eprintln!("WARNING: {}: {why}; {} is taken", self.name, program.display());
            } else {
                installed?;
            }
        }
        self.program().ok_or_else(|| {
            let name = self.package();
            format!("not installed: loadtest/peers/speed/install {name}, or --install")
        })
    }

    /// Where its program is, if it is there.
    fn program(&self) -> Option<PathBuf> {
        let target = root().join("loadtest/peers/target");
        let path = match self.kind {
            Kind::Ebbtide => return None,
            Kind::Nginx | Kind::H2o => return machine::find(self.name),
            Kind::Own(_) => target.join("release").join(format!("speed-{}", self.package())),
            Kind::Go => target.join("speed-go"),
            Kind::Uvicorn => target.join("speed-uvicorn/bin/uvicorn"),
        };
        path.is_file().then_some(path)
    }

    /// What `install` calls it.
    fn package(&self) -> &'static str {
        if self.name == "hyper-flush" { "hyper" } else { self.name }
    }

    fn install(&self) -> Result<(), String> {
        let mut install = Command::new(root().join("loadtest/peers/speed/install"));
        // What it says is for whoever waits; stdout is for results.
        let stderr = io::stderr();
        install.arg(self.package()).stdin(Stdio::null()).stdout(stderr);
        let status = install.status().map_err(|error| format!("cannot be installed: {error}"))?;
        if status.success() {
            return Ok(());
        }
        Err(format!("not installed: loadtest/peers/speed/install {} failed", self.package()))
    }

    /// How it is started.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn launch(&self, program: &Path, place: &Place<'_>) -> io::Result<Launch> {
        let (address, workers) = (place.address.to_string(), place.workers.to_string());
        let mut env = Vec::new();
        let args = match self.kind {
            Kind::Ebbtide => {
                env.push(("LISTEN", address));
                env.push(("WORKERS", workers));
                // As many as the machine has descriptors for, and not half of that.
                env.push(("MAX_CONNECTIONS", "1000000".to_owned()));
                env.push(("ADMIN_LISTEN", "127.0.0.1:0".to_owned()));
                // No other one has a database.
                env.push(("DATABASE_URL", "off".to_owned()));
                Vec::new()
            }
            Kind::Own(flags) => {
                let mut args = vec!["--listen".to_owned(), address];
                args.extend(["--workers".to_owned(), workers]);
                args.extend(flags.iter().map(|flag| (*flag).to_owned()));
                args.extend((place.asks == Asks::Close).then(|| "--close".to_owned()));
                args
            }
            Kind::Nginx => {
                let config = place.write("nginx.conf")?;
                let directory = place.directory.to_string_lossy().into_owned();
                vec!["-e".to_owned(), "stderr".to_owned(), "-p".to_owned(), directory]
                    .into_iter()
                    .chain(["-c".to_owned(), config])
                    .collect()
            }
            Kind::H2o => {
                fs::write(place.directory.join("plaintext"), crate::ebbtide::ROUTES.text_body)?;
                vec!["-c".to_owned(), place.write("h2o.conf")?]
            }
            Kind::Go => {
                env.push(("GOMAXPROCS", workers));
                let closes = (place.asks == Asks::Close).then(|| "close".to_owned());
                [address].into_iter().chain(closes).collect()
            }
            Kind::Uvicorn => {
                if place.asks == Asks::Close {
                    env.push(("SPEED_CLOSE", "1".to_owned()));
                }
                let folder = OTHERS.to_owned();
                let folder = root().join(folder).to_string_lossy().into_owned();
                let (host, port) = (place.address.ip().to_string(), place.address.port());
                let options = format!(
                    "server:app --no-server-header --no-access-log --timeout-keep-alive 75 \
                     --backlog 4096 --host {host} --port {port} --workers {workers} --app-dir"
                );
                options.split(' ').map(str::to_owned).chain([folder]).collect()
            }
        };
        Ok(Launch { program: program.to_owned(), args, env })
    }

    /// The size of its program without symbols, in KiB; `None` for one that is interpreted.
    ///
    /// # Errors
    /// When binutils are not there, or cannot read it.
    pub fn size_kib(&self, program: &Path, directory: &Path) -> io::Result<Option<f64>> {
        if self.kind == Kind::Uvicorn {
            return Ok(None);
        }
        let stripped = directory.join("stripped");
        let output = Command::new("strip").arg("-o").arg(&stripped).arg(program).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        #[allow(clippy::cast_precision_loss, reason = "no program has 2^53 bytes")]
        let size = fs::metadata(&stripped)?.len() as f64 / 1024.0;
        fs::remove_file(&stripped)?;
        Ok(Some(size))
    }
}

impl Place<'_> {
    /// Writes a file of settings; returns its path.
    fn write(&self, name: &str) -> io::Result<String> {
        let template = root().join(OTHERS).join(format!("{name}.template"));
        let text = fs::read_to_string(template)?;
        let text = [
            ("@ADDRESS@", self.address.to_string()),
            ("@HOST@", self.address.ip().to_string()),
            ("@PORT@", self.address.port().to_string()),
            ("@WORKERS@", self.workers.to_string()),
            ("@DIR@", self.directory.to_string_lossy().into_owned()),
        ]
        .iter()
        .fold(text, |text, (mark, value)| text.replace(mark, value));
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// Settings and programs of servers that cargo does not build.
const OTHERS: &str = "loadtest/peers/speed/others";

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// One that no system has.
    pub(crate) fn missing() -> Contender {
        always("no-such-server", Kind::Nginx, "nobody")
    }

    #[test]
    fn names_are_unique_and_the_first_is_ours() {
        let names: BTreeSet<_> = CONTENDERS.iter().map(|contender| contender.name).collect();
        assert_eq!(names.len(), CONTENDERS.len());
        assert_eq!(CONTENDERS[0].kind, Kind::Ebbtide);
        assert_eq!(Contender::named("nginx").unwrap().kind, Kind::Nginx);
        assert!(Contender::named("apache").is_none());
    }

    #[test]
    fn templates_have_no_mark_that_is_not_filled_in() {
        let directory = std::env::temp_dir().join(format!("loadtest-place-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let place = Place { address, workers: 2, asks: Asks::Keep, directory: &directory };
        for name in ["nginx.conf", "h2o.conf"] {
            let path = place.write(name).unwrap();
            let text = fs::read_to_string(path).unwrap();
            assert!(!text.lines().any(|l| !l.starts_with('#') && l.contains('@')), "{text}");
            assert!(text.contains("8080"), "{text}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
