//! The logger as its users meet it: what the lines say, and what happens when nobody reads them.

use std::io::{self, PipeReader, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ebbtide::logging::{self, Flushed, Format, Logger, Options, json};
use log::kv::{ToValue, Value};
use log::{Level, LevelFilter, Log, Record};
use proptest::prelude::*;
use serde_json::Value as Json;

/// Far more than any wait here needs; a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while held").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Memory {
    fn text(&self) -> String {
        let bytes = self.0.lock().expect("no panic while held").clone();
        String::from_utf8(bytes).expect("lines are UTF-8")
    }
}

/// Blocks in its first write until `release` is dropped, having said so through `entered`.
struct Stuck {
    memory: Memory,
    entered: Sender<()>,
    release: Receiver<()>,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _test_is_over = self.entered.send(());
        let _released = self.release.recv();
        self.memory.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers each write from a script, then takes everything.
struct Scripted {
    memory: Memory,
    answers: Vec<Result<usize, io::ErrorKind>>,
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.answers.pop() {
            Some(Err(kind)) => Err(kind.into()),
            Some(Ok(most)) => self.memory.write(&bytes[..most.min(bytes.len())]),
            None => self.memory.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logger(format: Format, sink: impl Write + Send + 'static) -> (Box<dyn Log>, Logger) {
    logging::with_sink(Options { level: LevelFilter::Info, format }, Box::new(sink))
        .expect("a thread is to be had")
}

fn say(log: &dyn Log, level: Level, message: &str, pairs: &[(&str, Value<'_>)]) {
    let mut record = Record::builder();
    record.level(level).target("tests").key_values(&pairs);
    log.log(&record.args(format_args!("{message}")).build());
}

fn flushed(logger: &Logger) {
    assert_eq!(logger.flush(Instant::now() + PATIENCE), Flushed::Complete);
}

/// The lines that `speak` makes, as text.
fn lines(format: Format, speak: impl FnOnce(&dyn Log)) -> String {
    let memory = Memory::default();
    let (log, logger) = logger(format, memory.clone());
    speak(&*log);
    flushed(&logger);
    assert_eq!(logger.dropped().load(Ordering::Relaxed), 0);
    memory.text()
}

fn parsed(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn dropped(logger: &Logger) -> u64 {
    logger.dropped().load(Ordering::Relaxed)
}

#[test]
fn only_records_of_the_level_or_above_are_written() {
    let text = lines(Format::Json, |log| {
        for level in Level::iter() {
            say(log, level, level.as_str(), &[]);
        }
    });
    let levels: Vec<_> = parsed(&text).iter().map(|line| line["level"].clone()).collect();
    assert_eq!(levels, ["ERROR", "WARN", "INFO"]);
}

#[test]
fn a_ready_made_object_is_emitted_as_it_is() {
    let report = json("{\"phases\": [1.50,\r\n\t2],\n\"peer\":\"\u{9b}\u{e0041}\"}".into());
    let text = lines(Format::Json, |log| {
        say(log, Level::Info, "Done", &[("json:report", report.to_value())]);
    });
    assert!(
        text.ends_with(
            "\"report\":{\"phases\": [1.50,   2], \"peer\":\"\\u009b\\udb40\\udc41\"}}\n"
        ),
        "{text}"
    );
    assert_eq!(parsed(&text)[0]["report"]["peer"], "\u{9b}\u{e0041}");
}

#[test]
fn what_claims_to_be_json_and_is_not_becomes_a_string() {
    for forged in ["{\"a\":1},\"level\":\"ERROR\"", "{} {}", "", "\"\n\"", "NaN"] {
        let text = lines(Format::Json, |log| {
            say(log, Level::Info, "Done", &[("json:report", forged.into())]);
        });
        assert_eq!(parsed(&text)[0]["report"], forged);
        assert_eq!(parsed(&text)[0]["level"], "INFO");
    }
}

/// What nobody wants to meet raw in a log: line ends, escape sequences, text that runs backwards.
const HIDDEN: [char; 10] =
    ['\n', '\r', '\t', '\0', '\u{1b}', '\u{7f}', '\u{9b}', '\u{2028}', '\u{202e}', '\u{e0041}'];

fn hostile() -> impl Strategy<Value = String> {
    let visible = prop::sample::select(&[' ', '=', '"', '\\', 'u', '{', '}', ',', ':', '1']);
    let c = prop_oneof![any::<char>(), prop::sample::select(&HIDDEN), visible];
    prop::collection::vec(c, 0..24).prop_map(String::from_iter)
}

fn hostile_key() -> impl Strategy<Value = String> {
    const NAMES: [&str; 8] =
        ["timestamp", "level", "message", "event_type", "a", "field.a", "json:a", "json:level"];
    prop_oneof![hostile(), prop::sample::select(&NAMES).prop_map(String::from)]
}

proptest! {
    #[test]
    fn hostile_strings_come_back_unchanged_from_one_clean_line(
        message in hostile(),
        event in hostile(),
        fields in prop::collection::vec((hostile_key(), hostile()), 0..6),
    ) {
        let mut pairs = vec![("event_type", Value::from(event.as_str()))];
        pairs.extend(fields.iter().map(|(key, value)| (key.as_str(), Value::from(value.as_str()))));
        let text = lines(Format::Json, |log| say(log, Level::Warn, &message, &pairs));

        let line = text.strip_suffix('\n').expect("a line ends");
        prop_assert!(!line.contains(char::is_control) && !line.contains(HIDDEN), "{line:?}");
        let object: Json = serde_json::from_str(line).expect("the line is JSON");
        prop_assert_eq!(&object["message"], &message);
        prop_assert_eq!(&object["event_type"], &event);
        // No field was lost to a name it shares with another.
        prop_assert_eq!(object.as_object().expect("an object").len(), 4 + fields.len());
        let mut taken: Vec<String> =
            ["timestamp", "level", "message", "event_type"].map(String::from).to_vec();
        for (key, value) in &fields {
            let ready = key.strip_prefix("json:");
            let mut name = ready.unwrap_or(key).to_string();
            while taken.contains(&name) {
                name = format!("field.{name}");
            }
            let ready = ready.and_then(|_| serde_json::from_str(value).ok());
            prop_assert_eq!(&object[&name], &ready.unwrap_or(Json::from(value.as_str())));
            taken.push(name);
        }
    }

    #[test]
    fn text_lines_stay_one_line_and_their_quoted_values_come_back(
        message in hostile(),
        value in hostile(),
    ) {
        let pairs = [("event_type", Value::from("x")), ("key", Value::from(value.as_str()))];
        let text = lines(Format::Text, |log| say(log, Level::Info, &message, &pairs));

        let line = text.strip_suffix('\n').expect("a line ends");
        prop_assert!(!line.contains(char::is_control) && !line.contains(HIDDEN), "{line:?}");
        let written = line.rsplit_once(" event_type=x key=").expect("the field is last").1;
        let read = if written.starts_with('"') {
            serde_json::from_str(written).expect("a quoted value is a JSON string")
        } else {
            prop_assert!(!written.is_empty() && !written.contains([' ', '=', '"', '\\']));
            written.to_string()
        };
        prop_assert_eq!(read, value);
    }
}

#[test]
fn each_threads_lines_keep_their_order() {
    let text = lines(Format::Json, |log| {
        thread::scope(|scope| {
            for name in ["one", "two", "three"] {
                scope.spawn(move || {
                    for number in 0..1_000 {
                        let pairs = [("thread", name.into()), ("number", Value::from(number))];
                        say(log, Level::Info, "Step", &pairs);
                    }
                });
            }
        });
    });
    let lines = parsed(&text);
    for name in ["one", "two", "three"] {
        let numbers = lines.iter().filter(|line| line["thread"] == name);
        assert!(numbers.map(|line| line["number"].as_u64()).eq((0..1_000).map(Some)));
    }
}

#[test]
fn a_stuck_sink_stalls_nobody_and_what_it_cost_is_said() {
    let memory = Memory::default();
    let (entered, has_entered) = mpsc::channel();
    let (release, is_released) = mpsc::channel();
    let sink = Stuck { memory: memory.clone(), entered, release: is_released };
    let (log, logger) = logger(Format::Json, sink);

    say(&*log, Level::Info, "First", &[]);
    has_entered.recv_timeout(PATIENCE).expect("the writing thread writes");
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let log = &log;
            scope.spawn(move || {
                for number in 0..10_000 {
                    let pairs = [("thread", name.into()), ("number", Value::from(number))];
                    say(&**log, Level::Info, "Flood", &pairs);
                }
            });
        }
    });
    // The writing thread holds only the first line, so the queue's 8192 places are all that fits.
    let lost = dropped(&logger);
    assert_eq!(lost, 20_000 - 8_192);

    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(50);
    assert_eq!(logger.flush(deadline), Flushed::TimedOut);
    assert!(Instant::now() >= deadline && begun.elapsed() < PATIENCE / 2);

    drop(release);
    flushed(&logger);
    say(&*log, Level::Info, "Last", &[]);
    flushed(&logger);

    let lines = parsed(&memory.text());
    assert_eq!(lines.len(), 1 + 8_192 + 2);
    let [.., before, notice, after] = lines.as_slice() else { unreachable!("counted above") };
    assert_eq!(before["message"], "Flood");
    assert_eq!(
        (&notice["event_type"], &notice["level"]),
        (&"log_lines_dropped".into(), &"WARN".into())
    );
    assert_eq!((&notice["count"], &after["message"]), (&lost.into(), &"Last".into()));
    // Nothing was taken out of the queue meanwhile, so what each thread got in is its beginning.
    for name in ["one", "two"] {
        let numbers = lines.iter().filter(|line| line["thread"] == name);
        assert!(numbers.zip(0_u64..).all(|(line, number)| line["number"] == number));
    }
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let (entered, has_entered) = mpsc::channel();
    let (release, is_released) = mpsc::channel();
    let memory = Memory::default();
    let sink = Stuck { memory: memory.clone(), entered, release: is_released };
    let (log, logger) = logger(Format::Json, sink);

    say(&*log, Level::Info, "First", &[]);
    has_entered.recv_timeout(PATIENCE).expect("the writing thread writes");
    let megabyte = "x".repeat(1 << 20);
    for _ in 0..6 {
        say(&*log, Level::Info, &megabyte, &[]);
    }
    // Four lines of a megabyte and their names pass 4 MiB; the bound is met by refusing the next.
    assert_eq!(dropped(&logger), 2);
    drop(release);
    flushed(&logger);
    assert_eq!(parsed(&memory.text()).len(), 5);
}

#[test]
fn a_sink_that_fails_costs_lines_and_nothing_else() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let (log, logger) = logger(Format::Json, writer);
    drop(reader);
    for _ in 0..100 {
        say(&*log, Level::Info, "Into a closed pipe", &[]);
    }
    flushed(&logger);
    assert_eq!(dropped(&logger), 100);
}

#[test]
fn after_a_failed_write_the_next_line_stands_alone_and_is_told_of_the_loss() {
    let memory = Memory::default();
    // Popped from the end: refused, interrupted, 10 bytes, then a failure.
    let answers = vec![
        Err(io::ErrorKind::StorageFull),
        Ok(10),
        Err(io::ErrorKind::Interrupted),
        Err(io::ErrorKind::WouldBlock),
    ];
    let sink = Scripted { memory: memory.clone(), answers };
    let (log, logger) = logger(Format::Json, sink);

    say(&*log, Level::Info, "Lost", &[]);
    flushed(&logger);
    assert_eq!(dropped(&logger), 1);
    say(&*log, Level::Info, "Kept", &[]);
    flushed(&logger);

    let text = memory.text();
    let (torn, rest) = text.split_once('\n').expect("the torn line is ended");
    assert_eq!(torn, "{\"timestam");
    let lines = parsed(rest);
    assert_eq!(
        (&lines[0]["event_type"], &lines[0]["count"]),
        (&"log_lines_dropped".into(), &1.into())
    );
    assert_eq!((lines.len(), &lines[1]["message"]), (2, &"Kept".into()));
    assert_eq!(dropped(&logger), 1);
}

#[test]
fn every_line_is_written_or_reported_once_however_the_sink_behaves() {
    let memory = Memory::default();
    let answers =
        (0..40).map(|n| if n % 2 == 0 { Err(io::ErrorKind::BrokenPipe) } else { Ok(1 << 20) });
    let sink = Scripted { memory: memory.clone(), answers: answers.collect() };
    let (log, logger) = logger(Format::Json, sink);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..20_000).for_each(|_| say(&*log, Level::Info, "Flood", &[])));
        }
    });
    flushed(&logger);
    // The script is over by now or ends here: each of these is a write of its own.
    for _ in 0..41 {
        say(&*log, Level::Info, "After", &[]);
        flushed(&logger);
    }

    let lines = parsed(&memory.text());
    let notices: Vec<_> =
        lines.iter().filter(|line| line["event_type"] == "log_lines_dropped").collect();
    let reported: u64 = notices.iter().map(|line| line["count"].as_u64().expect("a count")).sum();
    assert!(reported > 0);
    assert_eq!(reported, dropped(&logger));
    assert_eq!((lines.len() - notices.len()) as u64 + reported, 40_041);
}

#[test]
fn a_value_that_panics_while_it_is_formatted_leaves_nothing_in_the_next_line() {
    struct Bomb;
    impl std::fmt::Display for Bomb {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("tick").expect("a line takes every byte");
            panic!("a value that cannot be displayed");
        }
    }
    let text = lines(Format::Json, |log| {
        let pairs = [("bomb", Value::from_display(&Bomb))];
        let attempt = AssertUnwindSafe(|| say(log, Level::Info, "Before", &pairs));
        panic::catch_unwind(attempt).expect_err("the panic is its caller's");
        say(log, Level::Info, "After", &[]);
    });
    assert_eq!(parsed(&text).len(), 1);
    assert_eq!(parsed(&text)[0]["message"], "After");
}

#[test]
fn the_writing_thread_ends_with_the_logger() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let (log, _logger) = logger(Format::Text, writer);
    say(&*log, Level::Info, "Last words", &[]);
    drop(log);
    // The pipe ends once the thread has written what was queued and dropped the sink.
    let text = read_to_end(reader);
    assert!(text.contains("Last words") && text.ends_with('\n'), "{text}");
}

/// `init` and the panic hook are for a whole process: this test runs itself as one.
#[test]
fn a_process_logs_to_stderr_and_its_panics_are_lines() {
    const NAME: &str = "a_process_logs_to_stderr_and_its_panics_are_lines";
    if is_child() {
        let logger = child_logger();
        logging::install_panic_hook();
        log::info!(event_type = "started", workers = 2; "Up");
        log::debug!("unheard");
        let doomed = thread::Builder::new().name("doomed".into());
        let doomed = doomed.spawn(|| panic!("no\nluck")).expect("a thread is to be had");
        doomed.join().expect_err("it panicked");
        assert!(logging::init(Options { level: LevelFilter::Off, format: Format::Text }).is_err());
        flushed(&logger);
        return;
    }
    let (reader, writer) = io::pipe().expect("a pipe");
    let child = run_myself(NAME, writer.into());
    let lines = parsed(&read_to_end(reader));
    assert!(ended_well(child), "the child's own assertions hold");
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["event_type"], &lines[0]["workers"]), (&"started".into(), &2.into()));
    assert_eq!((&lines[1]["level"], &lines[1]["event_type"]), (&"ERROR".into(), &"panic".into()));
    assert_eq!((&lines[1]["message"], &lines[1]["thread"]), (&"no\nluck".into(), &"doomed".into()));
    let location = lines[1]["location"].as_str().expect("a place");
    assert!(location.starts_with("tests/logging.rs:"), "{location}");
}

#[test]
fn a_process_whose_stderr_nobody_reads_still_ends() {
    const NAME: &str = "a_process_whose_stderr_nobody_reads_still_ends";
    if is_child() {
        let logger = child_logger();
        for number in 0..20_000 {
            log::info!(number; "More than the pipe and the queue can hold");
        }
        assert_eq!(logger.flush(Instant::now() + Duration::from_millis(50)), Flushed::TimedOut);
        assert!(dropped(&logger) > 0);
        return;
    }
    let (reader, writer) = io::pipe().expect("a pipe");
    let child = run_myself(NAME, writer.into());
    assert!(ended_well(child), "the child's own assertions hold");
    drop(reader);
}

const CHILD: &str = "EBBTIDE_LOGGING_TEST_CHILD";

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn child_logger() -> Logger {
    logging::init(Options { level: LevelFilter::Info, format: Format::Json })
        .expect("the first logger of this process")
}

/// This test binary again, running only the test `name`, as a child.
fn run_myself(name: &str, stderr: Stdio) -> Child {
    Command::new(std::env::current_exe().expect("tests know where they are"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .expect("what runs can be run again")
}

/// Whether the child ended well; it is killed when it does not end in time.
fn ended_well(mut child: Child) -> bool {
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let (end, ended) = mpsc::channel();
    // The child's end closes its stdout, and this can be waited for with a limit.
    thread::spawn(move || {
        let _copied = io::copy(&mut stdout, &mut io::sink());
        let _test_is_over = end.send(());
    });
    if ended.recv_timeout(PATIENCE).is_err() {
        child.kill().expect("it is our child");
    }
    child.wait().expect("it is our child").success()
}

fn read_to_end(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("lines are UTF-8");
    text
}
