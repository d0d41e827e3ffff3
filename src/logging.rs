//! Logs: text on a terminal, JSON otherwise. They go to standard error.
//!
//! What comes from a client, a key among it, may hold anything: no control character of it reaches a
//! log, where it could begin a line of its own or give a terminal orders.

use std::fmt::{self, Write};
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::Subscriber;
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};

use crate::config::{Level, Log, LogFormat};

/// Starts logging as the config says. `FENCEGATE_LOG` overrides the level, target by target.
pub fn start(config: &Log) {
    let terminal = std::io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let level = match config.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    // What was done to marks is told at every level.
    let level = format!("{level},fencegate::audit=info");
    let filter = EnvFilter::try_from_env("FENCEGATE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logs = Subscriber::builder()
        .with_env_filter(filter)
        .with_ansi(terminal)
        .with_writer(std::io::stderr);
    // A second start changes nothing: the first subscriber stays.
    let _ = if json {
        tracing::subscriber::set_global_default(logs.json().flatten_event(true).finish())
    } else {
        tracing::subscriber::set_global_default(logs.fmt_fields(text_fields()).finish())
    };
}

/// A message and its fields in text, one after the other.
fn text_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer, field, value| match field.name() {
        "message" => write!(Escaping(writer), "{value:?}"),
        name => {
            let text = format!("{value:?}");
            match is_one_word(&text) {
                true => write!(writer, "{name}={text}"),
                false => write!(writer, "{name}={text:?}"),
            }
        }
    })
    .delimited(" ")
}

/// Whether a value may stand behind its name as it is: what a client sent must not look like a field of its own. A text in quotes
/// is one word.
fn is_one_word(text: &str) -> bool {
    let quoted = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    match quoted {
        Some(inner) => {
            let mut escaped = false;
            let ends = inner.chars().any(|character| {
                let ends = character == '"' && !escaped;
                escaped = character == '\\' && !escaped;
                ends
            });
            !ends && !escaped && !inner.contains(char::is_control)
        }
        None => !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"'),
    }
}

/// Writes control characters as escapes (JSON escapes them by itself).
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(char::is_control) {
            let (before, from) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut characters = from.chars();
            if let Some(control) = characters.next() {
                write!(self.0, "{}", control.escape_default())?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn no_value_begins_a_line_or_orders_a_terminal() {
        let lines = Lines::default();
        let logs = Subscriber::builder()
            .with_ansi(false)
            .without_time()
            .fmt_fields(text_fields())
            .with_writer(lines.clone())
            .finish();
        tracing::subscriber::with_default(logs, || {
            let key = "objects/\n\u{1b}[31mERROR forged\u{9b}ü";
            tracing::info!(target: "test", %key, text = key, number = 7, "what was {key}");
        });
        let written = lines.0.lock().unwrap().clone();
        let escaped = r"objects/\n\u{1b}[31mERROR forged\u{9b}ü";
        let quoted = format!("{:?}", "objects/\n\u{1b}[31mERROR forged\u{9b}ü");
        assert_eq!(
            String::from_utf8(written).unwrap(),
            format!(" INFO test: what was {escaped} key={quoted} text={quoted} number=7\n")
        );
    }

    #[test]
    fn no_value_is_a_field_of_its_own() {
        for word in [
            r#""a b""#,
            r#""a \"b\" c""#,
            "objects/42",
            "",
            "ü",
            r#""\\""#,
        ] {
            assert!(is_one_word(word), "{word}");
        }
        for words in [
            r#"a token=99"#,
            r#""a" token=99 b=""#,
            r#""a\\" b=""#,
            r#""a\"#,
            "a\u{a0}b",
            "\u{1b}",
            "\"\u{1b}\"",
            "\"",
        ] {
            assert!(!is_one_word(words), "{words}");
        }
    }
}
