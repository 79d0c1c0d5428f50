//! What goes on, on the error stream: steps, notes, and a bar.
//!
//! The bar comes after a quarter of a second, on a terminal: `[====----] 60% | 20MB/s | ETA 12s`. Elsewhere a line every ten
//! seconds says the same. With `--output json` or `ndjson` each event is a line of JSON.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use neon_pg::Event;
use serde_json::json;

use crate::args::Format;
use crate::failure::say;
use crate::render::{bytes, duration, rate};

const SILENCE: Duration = Duration::from_millis(250);
const FRAME: Duration = Duration::from_millis(100);
const ELSEWHERE: Duration = Duration::from_secs(10);
/// What the rate is taken over.
const WINDOW: Duration = Duration::from_secs(5);
const WIDTH: u64 = 32;

/// Shows events.
#[derive(Debug)]
pub(crate) struct Progress {
    format: Format,
    quiet: bool,
    terminal: bool,
    colours: bool,
    bar: Mutex<Option<Bar>>,
}

#[derive(Debug)]
struct Bar {
    subject: String,
    begun: Instant,
    shown: Option<Instant>,
    done: u64,
    total: u64,
    seen: VecDeque<(Instant, u64)>,
}

impl Progress {
    pub(crate) fn new(format: Format, quiet: bool, colours: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            format,
            quiet,
            terminal,
            colours: colours && terminal,
            bar: Mutex::new(None),
        }
    }

    /// Shows an event.
    pub(crate) fn show(&self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Progress {
                subject,
                done,
                total,
            } => self.progress(now, subject, done, total),
            Event::Step(text) => self.line("step", None, &text),
            Event::Note(text) => self.line("note", Some("1"), &text),
            Event::Warning(text) => self.line("warning", Some("1;33"), &text),
            _ => {}
        }
    }

    /// Says what will be done to somebody who is asked whether to go on.
    pub(crate) fn plan(&self, text: &str) {
        self.finish();
        if self.format == Format::Table {
            say(text);
        } else {
            say(&json!({ "event": "note", "text": text }).to_string());
        }
    }

    /// Nothing more comes: a bar that stands is ended.
    pub(crate) fn finish(&self) {
        if let Ok(mut bar) = self.bar.lock() {
            self.close(&mut bar);
        }
    }

    fn line(&self, what: &str, colour: Option<&str>, text: &str) {
        if self.quiet && what != "warning" {
            return;
        }
        self.finish();
        if self.format != Format::Table {
            say(&json!({ "event": what, "text": text }).to_string());
            return;
        }
        match colour {
            None => say(text),
            Some(colour) if self.colours => say(&format!("\x1b[{colour}m{what}:\x1b[0m {text}")),
            Some(_) => say(&format!("{what}: {text}")),
        }
    }

    fn progress(&self, now: Instant, subject: String, done: u64, total: u64) {
        let Ok(mut slot) = self.bar.lock() else {
            return;
        };
        if self.quiet {
            return;
        }
        if slot.as_ref().is_some_and(|bar| bar.subject != subject) {
            self.close(&mut slot);
        }
        let bar = slot.get_or_insert_with(|| Bar {
            subject,
            begun: now,
            shown: None,
            done: 0,
            total,
            seen: VecDeque::new(),
        });
        bar.update(now, done, total);
        let live = self.terminal && self.format == Format::Table;
        let due = match bar.shown {
            None if live => now.duration_since(bar.begun) >= SILENCE,
            None => now.duration_since(bar.begun) >= ELSEWHERE,
            Some(before) => now.duration_since(before) >= if live { FRAME } else { ELSEWHERE },
        };
        if !due {
            return;
        }
        bar.shown = Some(now);
        if live {
            redraw(&bar.text(now));
        } else if self.format == Format::Table {
            say(&format!("{}: {}", bar.subject, bar.text(now)));
        } else {
            let line = json!({
                "event": "progress",
                "subject": bar.subject,
                "done": bar.done,
                "total": bar.total,
            });
            say(&line.to_string());
        }
    }

    fn close(&self, slot: &mut Option<Bar>) {
        let Some(bar) = slot.take() else { return };
        if bar.shown.is_some() && self.terminal && self.format == Format::Table {
            redraw(&bar.text(Instant::now()));
            say("");
        }
    }
}

/// Over the line that stands there.
fn redraw(text: &str) {
    let mut err = std::io::stderr().lock();
    let _unread = write!(err, "\r{text}\x1b[K").and_then(|()| err.flush());
}

impl Bar {
    fn update(&mut self, now: Instant, done: u64, total: u64) {
        // Threads tell in any order.
        self.done = self.done.max(done);
        self.total = total.max(if total == 0 { 0 } else { self.done });
        self.seen.push_back((now, self.done));
        while self
            .seen
            .get(1)
            .is_some_and(|(then, _)| now.duration_since(*then) > WINDOW)
        {
            self.seen.pop_front();
        }
    }

    fn per_second(&self, now: Instant) -> u64 {
        let (then, before) = self.seen.front().copied().unwrap_or((self.begun, 0));
        let millis = now.duration_since(then).as_millis().max(1);
        let gained = u128::from(self.done.saturating_sub(before));
        u64::try_from(gained * 1000 / millis).unwrap_or(u64::MAX)
    }

    fn text(&self, now: Instant) -> String {
        let speed = self.per_second(now);
        if self.total == 0 {
            return format!("{} | {}", bytes(self.done), rate(speed));
        }
        let part = |of: u64| {
            let part = u128::from(self.done) * u128::from(of) / u128::from(self.total);
            u64::try_from(part).unwrap_or(of).min(of)
        };
        let filled = part(WIDTH);
        let bar: String = (0..WIDTH)
            .map(|at| if at < filled { '=' } else { '-' })
            .collect();
        let mut text = format!("[{bar}] {}% | {}", part(100), rate(speed));
        let left = self.total.saturating_sub(self.done);
        if let Some(seconds) = left.checked_div(speed).filter(|_| left > 0) {
            text.push_str(&format!(
                " | ETA {}",
                duration(Duration::from_secs(seconds.max(1)))
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_the_shape_of_the_document_and_says_how_long() {
        let begun = Instant::now();
        let mut bar = Bar {
            subject: "x".to_owned(),
            begun,
            shown: None,
            done: 0,
            total: 0,
            seen: VecDeque::new(),
        };
        bar.update(begun, 0, 0);
        bar.update(begun + Duration::from_secs(3), 60_000_000, 100_000_000);
        let now = begun + Duration::from_secs(3);
        assert_eq!(
            bar.text(now),
            "[===================-------------] 60% | 20MB/s | ETA 2.0s"
        );
        bar.update(now, 50_000_000, 100_000_000);
        assert!(bar.text(now).contains("60%"), "progress never goes back");
        bar.update(now, 100_000_000, 100_000_000);
        assert!(bar.text(now).contains("] 100% |"), "{}", bar.text(now));
        assert!(!bar.text(now).contains("ETA"));
        bar.update(now, 200_000_000, 0);
        assert_eq!(bar.text(now), "191M | 66.7MB/s");
    }
}
