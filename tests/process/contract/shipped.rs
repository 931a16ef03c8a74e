//! The files of `deploy` as data: which settings each place gives the server, and how long it waits
//! for its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::scratch;
use crate::support::tools::{stdout, tool};

/// A place where the server runs.
#[derive(Debug)]
pub struct Place {
    pub name: &'static str,
    /// The settings it gives, as environment variables.
    pub settings: Vec<(String, String)>,
    /// How long it waits between SIGTERM and SIGKILL, in seconds.
    pub grace: f64,
    /// Ports that others than the server itself use, and what for.
    pub ports: Vec<(String, u16)>,
    /// The limit of memory, in bytes.
    pub memory: Option<u64>,
}

/// A file of `deploy`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

pub fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("deploy/{name}: {error}"))
}

/// Every file there is, with its path.
pub fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![file("")];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

/// The documents of a YAML text.
pub fn yaml(text: &str) -> Vec<Value> {
    YamlLoader::load_from_str(text).expect("YAML").iter().map(json).collect()
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Integer(number) => (*number).into(),
        Yaml::Real(number) => number.parse::<f64>().unwrap().into(),
        Yaml::String(text) => text.clone().into(),
        Yaml::Boolean(value) => (*value).into(),
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::Hash(map) => {
            let key = |key: &Yaml| key.as_str().expect("keys are text").to_owned();
            map.iter().map(|(name, value)| (key(name), json(value))).collect::<Map<_, _>>().into()
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("not used here: {yaml:?}"),
    }
}

/// Every place there is a file for.
pub fn places() -> Vec<Place> {
    let mut places = vec![image(), compose(), service(), pod("Kubernetes base", &base())];
    let rendered = rendered().into_iter();
    places.extend(rendered.map(|(name, documents)| pod(name, &documents)));
    places
}

/// The production overlay as kubectl renders it, as it is and with all components; nothing where
/// there is no kubectl.
pub fn rendered() -> Vec<(&'static str, Vec<Value>)> {
    static RENDERED: OnceLock<Vec<(&str, Vec<Value>)>> = OnceLock::new();
    RENDERED.get_or_init(render).clone()
}

fn render() -> Vec<(&'static str, Vec<Value>)> {
    let kustomize = |folder: &Path| {
        Some(yaml(&stdout(tool("kubectl")?.args(["kustomize".as_ref(), folder.as_os_str()]))))
    };
    let production = file("kubernetes/overlays/production");
    let Some(production) = kustomize(&production) else { return Vec::new() };
    // An overlay beside that one, in a copy.
    let copy = scratch(&format!("kubernetes-{}", std::process::id()));
    let original = file("kubernetes");
    for path in files().iter().filter_map(|path| path.strip_prefix(&original).ok()) {
        fs::create_dir_all(copy.join(path).parent().unwrap()).unwrap();
        fs::copy(original.join(path), copy.join(path)).unwrap();
    }
    let components = fs::read_dir(original.join("components")).unwrap();
    let components = components.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let components: Vec<String> =
        components.map(|name| format!("  - ../../components/{name}\n")).collect();
    let folder = copy.join("overlays/everything");
    fs::create_dir(&folder).unwrap();
    let list = format!("resources:\n  - ../production\ncomponents:\n{}", components.concat());
    fs::write(folder.join("kustomization.yaml"), list).unwrap();
    let everything = kustomize(&folder).expect("it was there a moment ago");
    fs::remove_dir_all(copy).unwrap();
    vec![("Kubernetes overlay", production), ("Kubernetes overlay, components", everything)]
}

/// The base as kustomize puts it together, less labels: its files.
pub fn base() -> Vec<Value> {
    let list = yaml(&text("kubernetes/base/kustomization.yaml")).remove(0);
    let files = list["resources"].as_array().expect("a list of files").iter();
    files
        .flat_map(|name| yaml(&text(&format!("kubernetes/base/{}", name.as_str().unwrap()))))
        .collect()
}

/// All documents of that kind.
pub fn all_of_kind<'a>(documents: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

/// The one document of that kind.
pub fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let mut found = all_of_kind(documents, kind);
    let document = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "two of {kind}");
    document
}

fn image() -> Place {
    let text = text("docker/Dockerfile");
    let last = text.rsplit_once("\nFROM ").expect("two stages").1.replace("\\\n", "");
    let words = |start: &str| -> Vec<String> {
        let lines = last.lines().filter_map(|line| line.strip_prefix(start));
        lines.flat_map(|line| line.split_whitespace().map(str::to_owned)).collect()
    };
    let settings = words("ENV ").iter().map(|word| pair(word)).collect();
    let grace = text.split("--stop-timeout ").nth(1).expect("the command that runs it");
    Place {
        name: "image",
        settings,
        grace: grace.split(' ').next().unwrap().parse().unwrap(),
        ports: words("EXPOSE ")
            .iter()
            .map(|port| ("EXPOSE".into(), port.parse().unwrap()))
            .collect(),
        memory: None,
    }
}

fn compose() -> Place {
    let file = yaml(&text("docker/compose.yaml")).remove(0);
    let service = &file["services"]["ebbtide"];
    let own = service["environment"].as_object().expect("a map").iter();
    // Built with its feature there, which these tests may be without.
    let own = own.filter(|(name, _)| cfg!(feature = "redis") || *name != "REDIS_URL");
    let own = own.map(|(name, value)| (name.clone(), value.as_str().expect("quoted").to_owned()));
    let published = service["ports"].as_array().unwrap().iter().map(|port| {
        let inside = port.as_str().unwrap().rsplit(':').next().unwrap();
        ("published".to_owned(), inside.parse().unwrap())
    });
    Place {
        name: "compose",
        settings: image().settings.into_iter().chain(own).collect(),
        grace: seconds(service["stop_grace_period"].as_str().expect("a duration")),
        ports: published.collect(),
        memory: Some(bytes(service["mem_limit"].as_str().expect("a size"))),
    }
}

fn service() -> Place {
    let text = text("systemd/ebbtide.service");
    let values = |key: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix(key)).map(str::to_owned).collect()
    };
    Place {
        name: "systemd",
        settings: values("Environment=").iter().map(|line| pair(line)).collect(),
        grace: values("TimeoutStopSec=")[0].parse().unwrap(),
        ports: Vec::new(),
        memory: None,
    }
}

fn pod(name: &'static str, documents: &[Value]) -> Place {
    let spec = &of_kind(documents, "Deployment")["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let own = container["env"].as_array().unwrap().iter().map(|variable| {
        let is_secret = variable["valueFrom"]["secretKeyRef"]["key"].is_string();
        let value = if is_secret { Some(SECRET) } else { variable["value"].as_str() };
        let name = variable["name"].as_str().expect("a name");
        (name.to_owned(), value.expect("text").to_owned())
    });
    let number = |port: &Value| -> u16 {
        let named =
            container["ports"].as_array().unwrap().iter().find(|named| named["name"] == *port);
        let number = named.map_or(port, |named| &named["containerPort"]).as_u64();
        number.unwrap_or_else(|| panic!("no port {port}")).try_into().unwrap()
    };
    let mut ports: Vec<(String, u16)> = ["startupProbe", "livenessProbe", "readinessProbe"]
        .map(|probe| (probe.to_owned(), number(&container[probe]["httpGet"]["port"])))
        .to_vec();
    for service in all_of_kind(documents, "Service") {
        let of_service = service["spec"]["ports"].as_array().unwrap().iter();
        ports.extend(of_service.map(|port| ("Service".to_owned(), number(&port["targetPort"]))));
    }
    let policy = of_kind(documents, "NetworkPolicy")["spec"]["ingress"].as_array().unwrap().iter();
    let allowed = policy.flat_map(|rule| rule["ports"].as_array().unwrap());
    ports.extend(allowed.map(|port| ("NetworkPolicy".to_owned(), number(&port["port"]))));
    Place {
        name,
        settings: image().settings.into_iter().chain(own).collect(),
        grace: spec["terminationGracePeriodSeconds"].as_f64().expect("a number"),
        ports,
        memory: Some(bytes(container["resources"]["limits"]["memory"].as_str().unwrap())),
    }
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or_else(|| panic!("no setting: {text}"));
    (name.to_owned(), value.to_owned())
}

/// `35s`.
fn seconds(text: &str) -> f64 {
    text.strip_suffix('s').and_then(|number| number.parse().ok()).expect("seconds")
}

/// `64m` and `64Mi` alike: both are MiB.
fn bytes(text: &str) -> u64 {
    let number = text.trim_end_matches(['m', 'M', 'i']);
    assert_ne!(number, text, "the unit is MiB");
    number.parse::<u64>().unwrap() << 20
}

impl Place {
    /// The program as this place runs it, with nothing else in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ebbtide"));
        command.env_clear().current_dir(env!("CARGO_TARGET_TMPDIR")).args(arguments);
        for (name, value) in &self.settings {
            if value.starts_with("/run/secrets/") {
                command.env(name, secret_file());
            } else {
                command.env(name, value);
            }
        }
        command
    }

    /// What `print-config` says there: name, value without its quotes, and where it came from.
    pub fn config(&self) -> Vec<(String, String, String)> {
        let printed = stdout(&mut self.command(&["print-config"]));
        let rows = printed.lines().map(|line| {
            let (setting, source) = line.split_once("  # ").expect("a source");
            let (key, value) = setting.split_once(" = ").expect("a value");
            (key.to_owned(), value.trim_matches('"').to_owned(), source.to_owned())
        });
        rows.collect()
    }

    /// The value in force of a key.
    pub fn value(&self, key: &str) -> String {
        let row = self.config().into_iter().find(|row| row.0 == key);
        row.unwrap_or_else(|| panic!("no key {key}")).1
    }
}

/// What the comment at the head of compose.yaml says.
const SECRET: &str = "postgres://ebbtide:a%20password@postgres/ebbtide";

/// A file with it, one for each process: tests read it side by side.
fn secret_file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let file = scratch(&format!("secret-{}", std::process::id())).join("database-url");
        fs::write(&file, SECRET).unwrap();
        file
    })
}

/// A duration as `print-config` writes it, in seconds.
pub fn duration(text: &str) -> f64 {
    let at = text.find(|c: char| !c.is_ascii_digit()).expect("a unit");
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => panic!("{text}"),
    };
    number.parse::<f64>().unwrap() * unit
}
