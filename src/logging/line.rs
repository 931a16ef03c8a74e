//! One record as one line.
//!
//! Pure: bytes out, and the time is an argument. Holds the first two invariants of
//! [`super`]: nothing invisible leaves unescaped, and no name occurs twice.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::time::SystemTime;

use log::Record;
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use serde::de::IgnoredAny;
use serde::{Serialize, Serializer as _};

use super::Format;

/// One record as a line, its line feed included.
pub(super) fn line(format: Format, at: SystemTime, record: &Record<'_>) -> Vec<u8> {
    // humantime refuses a clock before 1970 with a panic.
    let at = humantime::format_rfc3339_millis(at.max(SystemTime::UNIX_EPOCH));
    let mut pairs = Pairs(Vec::new());
    // `Pairs` takes everything, so only a source that is broken fails, and then what came counts.
    let _incomplete = record.key_values().visit(&mut pairs);
    let event = pairs.0.iter().position(|(key, _)| key.as_str() == "event_type");
    let event = event.map(|index| pairs.0.remove(index).1);

    let mut line = Line { format, bytes: Vec::with_capacity(LINE_BYTES_USUAL) };
    line.head(&displayed(at), record);
    line.name("event_type");
    // As with the source: of a value that fails, what it has shown counts.
    let _incomplete = event.as_ref().unwrap_or(&Value::from("log")).visit(&mut line);
    let mut taken: Vec<Cow<'_, str>> =
        ["timestamp", "level", "message", "event_type"].map(Cow::from).to_vec();
    if event.is_none() {
        line.name("target");
        line.text(record.target());
        taken.push("target".into());
    }
    for (key, value) in &pairs.0 {
        let (mut name, is_json) = match key.as_str().strip_prefix(JSON_PREFIX) {
            Some(name) => (Cow::from(name), true),
            None => (Cow::from(key.as_str()), false),
        };
        while taken.contains(&name) {
            name = format!("field.{name}").into();
        }
        line.name(&name);
        taken.push(name);
        if is_json {
            line.json(&displayed(value));
        } else {
            let _incomplete = value.visit(&mut line);
        }
    }
    line.finish()
}

/// Collects a record's key-values, in order.
struct Pairs<'kvs>(Vec<(Key<'kvs>, Value<'kvs>)>);

impl<'kvs> VisitSource<'kvs> for Pairs<'kvs> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push((key, value));
        Ok(())
    }
}

/// A line in the making. As a visitor it writes the value it is shown.
struct Line {
    format: Format,
    bytes: Vec<u8>,
}

impl Line {
    fn head(&mut self, at: &str, record: &Record<'_>) {
        let level = record.level().as_str();
        let message =
            record.args().as_str().map_or_else(|| displayed(record.args()).into(), Cow::from);
        match self.format {
            Format::Json => {
                for (name, value) in [("timestamp", at), ("level", level), ("message", &message)] {
                    self.name(name);
                    self.text(value);
                }
            }
            Format::Text => {
                self.bytes.extend_from_slice(format!("{at} {level:<5} ").as_bytes());
                // Unquoted, for the eye; escaped all the same.
                let start = self.bytes.len();
                push_string(&mut self.bytes, &message);
                self.bytes.remove(start);
                self.bytes.pop();
            }
        }
    }

    fn name(&mut self, name: &str) {
        match self.format {
            Format::Json => {
                self.bytes.push(if self.bytes.is_empty() { b'{' } else { b',' });
                push_string(&mut self.bytes, name);
                self.bytes.push(b':');
            }
            Format::Text => {
                self.bytes.push(b' ');
                self.text(name);
                self.bytes.push(b'=');
            }
        }
    }

    fn text(&mut self, text: &str) {
        let bare = |c: char| !is_hidden(c) && !c.is_whitespace() && !matches!(c, '"' | '=' | '\\');
        if self.format == Format::Text && !text.is_empty() && text.chars().all(bare) {
            self.bytes.extend_from_slice(text.as_bytes());
        } else {
            push_string(&mut self.bytes, text);
        }
    }

    /// `text` itself when it is JSON. Then control bytes can only stand between its tokens, and
    /// everything else that is hidden only inside its strings: both can be replaced where they are.
    fn json(&mut self, text: &str) {
        if serde_json::from_str::<IgnoredAny>(text).is_ok() {
            let text = text.replace(['\n', '\r', '\t'], " ");
            push_visible(&mut self.bytes, &text).expect("a Vec takes every byte");
        } else {
            self.text(text);
        }
    }

    /// A number, or `null` for the floats JSON has no word for.
    fn scalar(&mut self, value: impl Serialize) {
        serde_json::to_writer(&mut self.bytes, &value).expect("a scalar into a Vec");
    }

    fn finish(mut self) -> Vec<u8> {
        match self.format {
            Format::Json => self.bytes.extend_from_slice(b"}\n"),
            Format::Text => self.bytes.push(b'\n'),
        }
        self.bytes
    }
}

impl VisitValue<'_> for Line {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.text(&displayed(value));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.scalar(());
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.scalar(value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.scalar(value);
        Ok(())
    }

    // Beyond 64 bits most readers of JSON lose digits: such numbers are strings.
    fn visit_u128(&mut self, value: u128) -> Result<(), kv::Error> {
        match u64::try_from(value) {
            Ok(value) => self.scalar(value),
            Err(_) => self.text(&value.to_string()),
        }
        Ok(())
    }

    fn visit_i128(&mut self, value: i128) -> Result<(), kv::Error> {
        match i64::try_from(value) {
            Ok(value) => self.scalar(value),
            Err(_) => self.text(&value.to_string()),
        }
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.scalar(value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.scalar(value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.text(value);
        Ok(())
    }
}

/// What `value` displays. Unlike `to_string` and `io::Write`, which panic when a `Display` reports
/// an error of its own, this keeps what it had written until then.
pub(super) fn displayed(value: impl fmt::Display) -> String {
    let mut text = String::new();
    let _incomplete = write!(text, "{value}");
    text
}

/// Appends `text` as a JSON string in which everything is visible.
fn push_string(bytes: &mut Vec<u8>, text: &str) {
    serde_json::Serializer::with_formatter(bytes, Visible)
        .serialize_str(text)
        .expect("a string into a Vec");
}

/// `serde_json` escapes what JSON demands; this escapes the rest of what [`is_hidden`] names.
struct Visible;

impl serde_json::ser::Formatter for Visible {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        push_visible(writer, fragment)
    }
}

/// The text with `\u` escapes for what a terminal obeys or does not show: control characters, marks
/// that turn the direction of text or take no space. JSON in which they stand in strings only stays
/// JSON.
#[allow(clippy::missing_panics_doc, reason = "it cannot fail")]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len() + LINE_BYTES_USUAL);
    push_visible(&mut bytes, text).expect("a Vec takes every byte");
    String::from_utf8(bytes).expect("escapes are ASCII, and the rest was text").into()
}

fn push_visible<W: ?Sized + Write>(writer: &mut W, text: &str) -> io::Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find(is_hidden) {
        let (before, from) = rest.split_at(at);
        let hidden = from.chars().next().expect("what was found is there");
        writer.write_all(before.as_bytes())?;
        for unit in hidden.encode_utf16(&mut [0; 2]) {
            write!(writer, "\\u{unit:04x}")?;
        }
        rest = &from[hidden.len_utf8()..];
    }
    writer.write_all(rest.as_bytes())
}

/// What a terminal obeys instead of showing: C0, DEL and C1 (a lone U+009B begins an escape
/// sequence), line separators, marks that turn the direction of text or take no space (Unicode's
/// `Bidi_Control`, the joiners and `Default_Ignorable` formats), annotation marks, and tags.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Under a key with this prefix stands JSON, see [`super::json`].
const JSON_PREFIX: &str = "json:";

/// Room a line begins with: most need no more.
pub(super) const LINE_BYTES_USUAL: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use log::Level;

    use super::*;

    fn check(format: Format, pairs: &[(&str, Value<'_>)], expected: &str) {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_337_466_662);
        let mut record = Record::builder();
        record.level(Level::Info).target("here").key_values(&pairs);
        let bytes = line(format, at, &record.args(format_args!("Up on \"{}\"", "\x1b[2J")).build());
        assert_eq!(String::from_utf8(bytes).expect("lines are UTF-8"), expected);
    }

    #[test]
    fn a_json_line_has_its_fields_in_order_with_their_types() {
        let far = Debug;
        check(
            Format::Json,
            &[
                ("phase", "draining".into()),
                ("event_type", "shutdown_phase".into()),
                ("open", 12_u64.into()),
                ("change", (-3_i64).into()),
                ("wide", u128::from(u64::MAX).into()),
                ("wider", u128::MAX.into()),
                ("narrow", i128::MIN.into()),
                ("left", 0.5_f64.into()),
                ("ratio", f64::NAN.into()),
                ("clean", true.into()),
                ("route", Value::null()),
                ("debug", Value::from_debug(&far)),
            ],
            concat!(
                r#"{"timestamp":"2026-11-22T08:51:06.662Z","level":"INFO","#,
                r#""message":"Up on \"\u001b[2J\"","event_type":"shutdown_phase","#,
                r#""phase":"draining","open":12,"change":-3,"wide":18446744073709551615,"#,
                r#""wider":"340282366920938463463374607431768211455","#,
                r#""narrow":"-170141183460469231731687303715884105728","#,
                r#""left":0.5,"ratio":null,"clean":true,"route":null,"debug":"\"far\""}"#,
                "\n"
            ),
        );
    }

    #[test]
    fn a_text_line_quotes_what_is_not_one_plain_word() {
        check(
            Format::Text,
            &[("plain", "a/b".into()), ("two", "a b".into()), ("none", "".into()), ("n", 1.into())],
            concat!(
                r#"2026-11-22T08:51:06.662Z INFO  Up on \"\u001b[2J\" event_type=log target=here "#,
                r#"plain=a/b two="a b" none="" n=1"#,
                "\n"
            ),
        );
        check(
            Format::Text,
            &[
                ("event_type", "x".into()),
                ("a key", "a\u{9b}b\u{202e}".into()),
                ("eq", "a=b".into()),
                ("json:report", r#"{"exit code": 0}"#.into()),
            ],
            concat!(
                r#"2026-11-22T08:51:06.662Z INFO  Up on \"\u001b[2J\" event_type=x "#,
                r#""a key"="a\u009bb\u202e" eq="a=b" report={"exit code": 0}"#,
                "\n"
            ),
        );
    }

    #[test]
    fn a_taken_name_is_prefixed_until_it_is_free() {
        let pairs = ["message", "a", "a", "a", "level", "target", "event_type", "event_type"]
            .map(|name| (name, Value::from(1)));
        check(
            Format::Json,
            &pairs,
            concat!(
                r#"{"timestamp":"2026-11-22T08:51:06.662Z","level":"INFO","#,
                r#""message":"Up on \"\u001b[2J\"","event_type":1,"field.message":1,"a":1,"#,
                r#""field.a":1,"field.field.a":1,"field.level":1,"target":1,"field.event_type":1}"#,
                "\n"
            ),
        );
        check(
            Format::Json,
            &[("target", "mine".into()), ("json:timestamp", "[]".into())],
            concat!(
                r#"{"timestamp":"2026-11-22T08:51:06.662Z","level":"INFO","#,
                r#""message":"Up on \"\u001b[2J\"","event_type":"log","target":"here","#,
                r#""field.target":"mine","field.timestamp":[]}"#,
                "\n"
            ),
        );
    }

    #[test]
    fn a_clock_before_the_epoch_and_a_display_that_fails_do_not_panic() {
        struct Half;
        impl fmt::Display for Half {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("half").and(Err(fmt::Error))
            }
        }
        let mut record = Record::builder();
        let at = UNIX_EPOCH - Duration::from_secs(1);
        let bytes = line(Format::Text, at, &record.args(format_args!("{Half}")).build());
        assert!(bytes.starts_with(b"1970-01-01T00:00:00.000Z INFO  half event_type=log"));
    }

    /// Debugs as a string in quotes.
    struct Debug;
    impl fmt::Debug for Debug {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"far\"")
        }
    }
}
