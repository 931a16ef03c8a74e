//! The table as text: what `print-config` prints, the documented sample file, the README's table.

use std::fmt::Write;

use super::source::{Source, Sources};
use super::table::{Config, KEYS};

/// The configuration in force as TOML: one key a line, each with a comment that names its source.
/// Loaded as a file it gives the same [`Config`], but for secrets: what is not shown is a comment.
pub fn print_config(config: &Config, sources: &Sources) -> String {
    let mut text = String::new();
    for (key, value) in KEYS.iter().zip(config.written()) {
        let source = sources.of(key.name);
        let mark = if key.kind.is_secret() && *source != Source::Default { "# " } else { "" };
        line(&mut text, format_args!("{mark}{} = {value}  # {source}", key.name));
    }
    text
}

/// The sample `config/settings.toml`: every key under its heading, with what it does, what it takes
/// and its default, all of it in comments.
pub fn sample_settings() -> String {
    let mut text = String::from(SAMPLE_HEAD);
    let mut section = "";
    for (key, default) in KEYS.iter().zip(Config::default().written()) {
        if key.section != section {
            section = key.section;
            line(&mut text, format_args!("\n# ==== {section} ===="));
        }
        text.push('\n');
        for doc in key.doc {
            line(&mut text, format_args!("# {}", doc.trim()));
        }
        line(&mut text, format_args!("# Takes {}.", key.kind.range()));
        line(&mut text, format_args!("# {} = {default}", key.name));
    }
    text
}

/// The table of the README, in Markdown: key, default, range or values, what it does.
pub fn markdown_table() -> String {
    let mut text = String::from("| key | default | range or values | what it does |\n");
    text.push_str("| --- | --- | --- | --- |\n");
    for key in KEYS {
        let default = match key.default {
            "" => "none".to_owned(),
            default => format!("`{default}`"),
        };
        let cells =
            [default, key.kind.range(), key.sentence()].map(|cell| cell.replace('|', "\\|"));
        line(&mut text, format_args!("| `{}` | {} |", key.name, cells.join(" | ")));
    }
    text
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a String takes all that is written to it");
}

const SAMPLE_HEAD: &str = r##"# Settings of ebbtide.
#
# Read from config/settings.toml in the working directory, or from the file that --config or
# EBBTIDE_CONFIG names. Every key is here with its default: remove the "# " before a key to change
# it. A key such as shutdown_timeout is also the environment variable SHUTDOWN_TIMEOUT, which wins
# over this file, and the flag --shutdown-timeout, which wins over both.
#
# Durations are a number of seconds or text such as "500ms", "30s", "1m 500ms"; sizes are bytes or
# text such as "64KiB", "10kB".
"##;
