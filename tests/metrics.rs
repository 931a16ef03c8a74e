//! What a scrape sees.

use std::io::Write;
use std::process::{Command, Stdio};

use ebbtide::internal::metrics::{
    CONTENT_TYPE, Facts, HistogramFacts, Metrics, PoolFacts, TABLE, WorkerMetrics, markdown_table,
    names,
};
use http::Method;

/// The facts of a server that has seen everything once or more, no two numbers alike.
fn busy() -> Facts {
    Facts {
        requests_in_flight: 3,
        requests_finished: [100, 101, 102, 103],
        rejected: vec![(431, 5), (400, 6), (431, 20)],
        connections: [110, 111, 112, 113, 114, 115, 116],
        accepted: 7,
        connections_closed: [120, 121, 122, 123, 124, 125, 126, 127],
        late_bytes: u64::MAX,
        phase: 2,
        shutdown_duration_seconds: 1.25,
        active_connections_at_shutdown: 8,
        forced_shutdown_total: 9,
        hook_seconds: vec![
            ("a \"b\"\n".to_owned(), 0.5),
            ("c".to_owned(), 1.0),
            ("c".to_owned(), 2.0),
        ],
        log_lines_dropped: 10,
        pools: vec![PoolFacts {
            name: "sqlite",
            threads: 130,
            busy: 131,
            queue_length: 132,
            wait: HistogramFacts { bounds: &[0.5], counts: vec![133, 134], sum: 135.0 },
            run: HistogramFacts { bounds: &[0.5], counts: vec![136, 137], sum: 138.0 },
            outcomes: vec![("done", 139), ("lost", 140)],
        }],
    }
}

#[test]
fn the_table_names_each_metric_once_and_well() {
    let names = names();
    assert_eq!(names.len(), TABLE.len());
    for (i, (name, kind, labels, help)) in names.iter().enumerate() {
        assert!(names[..i].iter().all(|(other, ..)| other != name), "{name} twice");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(labels.split(',').all(|label| label.bytes().all(|b| b.is_ascii_lowercase())));
        // Nothing that the exposition or Markdown would have to escape.
        assert!(help.ends_with('.') && !help.contains(['\\', '\n', '|', '"', '`']), "{name}");
    }
}

#[test]
fn the_readme_table_has_a_row_for_each_metric() {
    let table = markdown_table();
    let rows: Vec<_> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), TABLE.len());
    assert!(rows[0].starts_with("| `http_requests_total{method,code}` | counter | Requests that"));
    assert!(rows.iter().all(|row| row.matches('|').count() == 4 && row.ends_with(". |")));
}

#[test]
fn metrics_travel_to_the_threads_that_use_them() {
    fn travels<T: Send + 'static>() {}
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    travels::<WorkerMetrics>();
    is_shared::<Metrics>();
    assert!(CONTENT_TYPE.starts_with("text/plain; version=0.0.4"));
}

#[cfg(not(feature = "metrics"))]
#[test]
fn a_build_without_metrics_says_so_and_nothing_else() {
    let metrics = Metrics::new();
    let mut worker = metrics.worker();
    worker.request(&Method::GET, 200, 0.1);
    worker.turn(0.1);
    assert!(!worker.is_dirty());
    worker.flush();
    let text = metrics.render(&busy());
    assert!(text.starts_with("# This build has no metrics") && text.lines().count() == 1);
    check_with_promtool(&text);
}

#[cfg(feature = "metrics")]
mod exposition {
    use std::thread;

    use ebbtide::internal::metrics::{
        CONNECTION_OUTCOMES, CONNECTION_STATES, PHASES, REQUEST_BUCKETS, REQUEST_OUTCOMES,
        TURN_BUCKETS,
    };

    use super::*;

    /// The value of the sample `series`, written as in the exposition, labels included.
    fn value(text: &str, series: &str) -> Option<f64> {
        let mut found =
            text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = found.next()?.parse().expect("a sample ends in a number");
        assert_eq!(found.next(), None, "{series} is exposed twice");
        Some(value)
    }

    #[track_caller]
    fn check(text: &str, series: &str, expected: f64) {
        let value = value(text, series).unwrap_or_else(|| panic!("no {series} in\n{text}"));
        assert!((value - expected).abs() < 1e-9, "{series} is {value}, not {expected}");
    }

    fn scrape(metrics: &Metrics) -> String {
        metrics.render(&Facts::default())
    }

    #[test]
    fn fixed_series_are_there_from_the_first_scrape() {
        let text = scrape(&Metrics::new());
        let labelled = [
            ("http_requests_finished_total", "outcome", &REQUEST_OUTCOMES[..]),
            ("http_rejected_total", "code", &["400", "408", "414", "431"][..]),
            ("http_connections", "state", &CONNECTION_STATES[..]),
            ("http_connections_closed_total", "outcome", &CONNECTION_OUTCOMES[..]),
            ("shutdown_phase", "phase", &PHASES[1..]),
        ];
        for (name, label, values) in labelled {
            for of in values {
                check(&text, &format!("{name}{{{label}=\"{of}\"}}"), 0.0);
            }
        }
        for name in [
            "http_requests_in_flight",
            "http_connections_accepted_total",
            "http_late_bytes_total",
            "reactor_turn_seconds_count",
            "shutdown_duration_seconds",
            "active_connections_at_shutdown",
            "forced_shutdown_total",
            "log_lines_dropped_total",
        ] {
            check(&text, name, 0.0);
        }
        check(&text, "shutdown_phase{phase=\"running\"}", 1.0);
    }

    #[test]
    fn facts_come_out_under_their_names() {
        let text = Metrics::new().render(&busy());
        for (series, expected) in [
            ("http_requests_in_flight", 3.0),
            ("http_requests_finished_total{outcome=\"answered\"}", 100.0),
            ("http_requests_finished_total{outcome=\"abandoned\"}", 103.0),
            ("http_rejected_total{code=\"400\"}", 6.0),
            ("http_rejected_total{code=\"408\"}", 0.0),
            ("http_rejected_total{code=\"431\"}", 25.0),
            ("http_connections{state=\"new\"}", 110.0),
            ("http_connections{state=\"lingering\"}", 116.0),
            ("http_connections_accepted_total", 7.0),
            ("http_connections_closed_total{outcome=\"client_closed\"}", 120.0),
            ("http_connections_closed_total{outcome=\"cut\"}", 127.0),
            ("shutdown_phase{phase=\"running\"}", 0.0),
            ("shutdown_phase{phase=\"draining\"}", 1.0),
            ("shutdown_phase{phase=\"stopped\"}", 0.0),
            ("shutdown_duration_seconds", 1.25),
            ("active_connections_at_shutdown", 8.0),
            ("forced_shutdown_total", 9.0),
            ("shutdown_hook_seconds{hook=\"a \\\"b\\\"\\n\"}", 0.5),
            ("shutdown_hook_seconds{hook=\"c\"}", 3.0),
            ("log_lines_dropped_total", 10.0),
            ("pool_threads{pool=\"sqlite\"}", 130.0),
            ("pool_busy{pool=\"sqlite\"}", 131.0),
            ("pool_queue_length{pool=\"sqlite\"}", 132.0),
            ("pool_job_wait_seconds_bucket{pool=\"sqlite\",le=\"0.5\"}", 133.0),
            ("pool_job_wait_seconds_count{pool=\"sqlite\"}", 267.0),
            ("pool_job_wait_seconds_sum{pool=\"sqlite\"}", 135.0),
            ("pool_job_run_seconds_count{pool=\"sqlite\"}", 273.0),
            ("pool_jobs_total{pool=\"sqlite\",outcome=\"done\"}", 139.0),
            ("pool_jobs_total{pool=\"sqlite\",outcome=\"lost\"}", 140.0),
        ] {
            check(&text, series, expected);
        }
        // Facts are whole numbers to the last digit.
        assert!(text.contains("\nhttp_late_bytes_total 18446744073709551615\n"));
    }

    #[test]
    fn every_row_of_the_table_is_exposed_with_its_help_and_type_and_nothing_else_is() {
        let metrics = Metrics::new();
        metrics.worker().request(&Method::GET, 200, 0.1);
        let text = metrics.render(&busy());
        for (name, kind, _, help) in names() {
            let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name}");
            assert_eq!(text.matches(&head).count(), 1, "{head}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE ")).count(), TABLE.len());
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn the_process_describes_itself() {
        let text = scrape(&Metrics::new());
        let value = |name: &str| value(&text, name).unwrap_or_else(|| panic!("no {name}"));
        let (open, max) = (value("process_open_fds"), value("process_max_fds"));
        assert!((3.0..=max).contains(&open), "{open} of {max}");
        let (resident, all) =
            (value("process_resident_memory_bytes"), value("process_virtual_memory_bytes"));
        assert!(1e5 < resident && resident < all, "{resident} of {all}");
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        // This process began after this source was written, and by now.
        let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!((1.7e9..=now + 2.0).contains(&started), "{started} at {now}");
        let version = env!("CARGO_PKG_VERSION");
        assert!(text.contains(&format!("\nbuild_info{{version=\"{version}\",revision=\"")));
    }

    #[test]
    fn what_a_worker_saw_is_scraped_once_it_has_flushed() {
        let metrics = Metrics::new();
        let mut worker = metrics.worker();
        assert!(!worker.is_dirty());
        worker.request(&Method::GET, 200, 0.25);
        worker.turn(0.5);
        assert!(worker.is_dirty());
        assert_eq!(value(&scrape(&metrics), "reactor_turn_seconds_count"), Some(0.0));

        for _ in 0..2 {
            worker.flush();
            assert!(!worker.is_dirty());
            let text = scrape(&metrics);
            check(&text, "http_requests_total{code=\"200\",method=\"GET\"}", 1.0);
            check(&text, "http_request_duration_seconds_sum{code=\"200\",method=\"GET\"}", 0.25);
            check(&text, "reactor_turn_seconds_sum", 0.5);
            check(&text, "reactor_turn_seconds_count", 1.0);
        }
        worker.turn(0.5);
        drop(worker);
        check(&scrape(&metrics), "reactor_turn_seconds_count", 2.0);
    }

    #[test]
    fn the_workers_of_a_server_add_up_and_two_servers_do_not() {
        let (metrics, other) = (Metrics::new(), Metrics::new());
        thread::scope(|scope| {
            for code in [200, 503] {
                let metrics = metrics.clone();
                scope.spawn(move || {
                    let mut worker = metrics.worker();
                    for number in 0..10_000 {
                        worker.request(&Method::GET, 200, 0.001);
                        worker.request(&Method::POST, code, 0.002);
                        worker.turn(0.003);
                        if number % 100 == 0 {
                            worker.flush();
                        }
                    }
                });
            }
            // Scrapes meanwhile see whole histograms.
            for _ in 0..50 {
                let text = scrape(&metrics);
                let count = value(&text, "reactor_turn_seconds_count");
                assert_eq!(count, value(&text, "reactor_turn_seconds_bucket{le=\"+Inf\"}"));
                assert_eq!(count, value(&text, "reactor_turn_seconds_bucket{le=\"0.005\"}"));
            }
        });
        let text = scrape(&metrics);
        check(&text, "http_requests_total{code=\"200\",method=\"GET\"}", 20_000.0);
        check(&text, "http_requests_total{code=\"200\",method=\"POST\"}", 10_000.0);
        check(&text, "http_requests_total{code=\"503\",method=\"POST\"}", 10_000.0);
        check(&text, "http_request_duration_seconds_count{code=\"503\",method=\"POST\"}", 10_000.0);
        check(&text, "reactor_turn_seconds_count", 20_000.0);
        assert!(!scrape(&other).contains("http_requests_total"));
    }

    #[test]
    fn methods_of_the_clients_own_making_share_one_name() {
        let metrics = Metrics::new();
        let mut worker = metrics.worker();
        for method in ["BREW", "get", "PROPFIND"] {
            worker.request(&Method::from_bytes(method.as_bytes()).expect("a token"), 405, 0.0);
        }
        worker.request(&Method::PATCH, 405, 0.0);
        worker.flush();
        let text = scrape(&metrics);
        check(&text, "http_requests_total{code=\"405\",method=\"_OTHER\"}", 3.0);
        check(&text, "http_requests_total{code=\"405\",method=\"PATCH\"}", 1.0);
        assert!(!text.contains("BREW"));
    }

    #[test]
    fn a_duration_on_a_buckets_edge_is_in_the_bucket() {
        let metrics = Metrics::new();
        let mut worker = metrics.worker();
        for edge in REQUEST_BUCKETS {
            worker.request(&Method::GET, 200, edge);
        }
        for edge in TURN_BUCKETS {
            worker.turn(edge);
        }
        // Beyond the last edge there is one more.
        worker.request(&Method::GET, 200, REQUEST_BUCKETS[16].next_up());
        worker.turn(TURN_BUCKETS[18].next_up());
        worker.flush();

        let text = scrape(&metrics);
        for (below, edge) in (1_u32..).zip(REQUEST_BUCKETS) {
            let labels = format!("{{code=\"200\",method=\"GET\",le=\"{edge}\"}}");
            let series = format!("http_request_duration_seconds_bucket{labels}");
            check(&text, &series, below.into());
        }
        for (below, edge) in (1_u32..).zip(TURN_BUCKETS) {
            check(&text, &format!("reactor_turn_seconds_bucket{{le=\"{edge}\"}}"), below.into());
        }
        check(&text, "reactor_turn_seconds_bucket{le=\"+Inf\"}", 20.0);
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        let metrics = Metrics::new();
        let mut worker = metrics.worker();
        worker.request(&Method::GET, 200, 0.003);
        worker.request(&Method::PUT, 503, 3.0);
        worker.turn(0.000_02);
        worker.flush();
        for facts in [Facts::default(), busy()] {
            check_with_promtool(&metrics.render(&facts));
        }
    }
}

/// Has `promtool check metrics` read `text`. Without promtool this is skipped with a notice, or
/// fails where `EBBTIDE_REQUIRE_TOOLS=1` says that every tool must be there.
fn check_with_promtool(text: &str) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match spawned {
        Ok(promtool) => promtool,
        Err(error) => {
            let required = std::env::var_os("EBBTIDE_REQUIRE_TOOLS").is_some_and(|v| v == "1");
            assert!(!required, "promtool is required and did not start: {error}");
            // Not `println!`, which the harness keeps to itself when a test passes.
            writeln!(
                std::io::stderr(),
                "SKIPPED: promtool did not start ({error}); Debian has it in `prometheus`"
            )
            .expect("stderr is open");
            return;
        }
    };
    let mut stdin = promtool.stdin.take().expect("stdin is piped");
    stdin.write_all(text.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("it is our child");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{}: {said}\nof\n{text}", output.status);
}
