//! Streams the WAL of a server into a directory, as `pg_receivewal` does: `.partial` until a segment is
//! whole and durable, histories of timelines, and on to the next timeline when one ends.
//!
//! ```text
//! stream_wal 'host=/run/postgresql user=postgres' /archive [--slot NAME] [--until X/X]
//! ```

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::{program, surroundings};
use neon_pg_layout::{Lsn, TimelineHistory, TimelineId};
use neon_pgwire::{
    Client, Config, ErrorKind, Params, Positions, Replication, SlotName, StreamEnd, StreamOptions,
    SystemIdentity, WalEvent, quote_literal,
};

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let usage = "stream_wal CONNECTION DIRECTORY [--slot NAME] [--until X/X]";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let [conninfo, directory, options @ ..] = words.as_slice() else {
        return program::wrong_usage("", usage);
    };
    let Some(conninfo) = conninfo.to_str() else {
        return program::wrong_usage("a connection string is UTF-8", usage);
    };
    let (mut slot, mut until) = (None, None);
    for option in options.chunks(2) {
        let words = (
            option.first().and_then(|word| word.to_str()),
            option.get(1).and_then(|word| word.to_str()),
        );
        let understood = match words {
            (Some("--slot"), Some(value)) => {
                slot = value.parse::<SlotName>().ok();
                slot.is_some()
            }
            (Some("--until"), Some(value)) => {
                until = value.parse::<Lsn>().ok();
                until.is_some()
            }
            _ => false,
        };
        if !understood {
            let option = option.join(std::ffi::OsStr::new(" "));
            let reason = format!("not understood: {}", option.display());
            return program::wrong_usage(&reason, usage);
        }
    }
    match run(conninfo, Path::new(directory), slot, until).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => program::failed(error.as_ref()),
    }
}

async fn run(
    conninfo: &str,
    directory: &Path,
    slot: Option<SlotName>,
    until: Option<Lsn>,
) -> Result<(), Failure> {
    let params: Params = conninfo.parse()?;
    let config = Config::resolve(&params, &surroundings::of_this_process())?;
    let physical = config.clone().with_replication(Replication::Physical);
    let mut client = Client::connect(&physical).await?;
    let segment = client.wal_segment_size().await?;
    let identity = client.identify_system().await?;
    let mut slot_is_new = false;
    if let Some(slot) = &slot {
        match client.create_physical_slot(slot, false, true).await {
            Ok(_) => slot_is_new = true,
            Err(error) if error.sqlstate() == Some("42710") => {}
            Err(error) => return Err(error.into()),
        }
    }
    // After the newest whole segment, else from where the slot keeps WAL, else from here on.
    let (mut timeline, mut at) = match newest(directory, segment)? {
        Some(found) => found,
        None => {
            let kept = match &slot {
                Some(slot) => {
                    let asked = match params.get("dbname") {
                        Some(_) => config,
                        None => config.with_dbname("postgres"),
                    };
                    match kept_by(slot, &mut client, &identity, &asked).await {
                        Ok(kept) => kept,
                        Err(error) if slot_is_new => {
                            program::complain(format_args!(
                                "begins at {}: {error}",
                                identity.position
                            ));
                            None
                        }
                        Err(error) => {
                            program::complain(format_args!(
                                "warning: what slot {slot} keeps from before {} is not fetched, because nobody \
                                 can tell where that begins: {error}",
                                identity.position
                            ));
                            None
                        }
                    }
                }
                None => None,
            };
            let (timeline, from) = kept.unwrap_or((identity.timeline, identity.position));
            (timeline, from.start_of(segment))
        }
    };
    loop {
        save_history(&mut client, directory, timeline).await?;
        let mut options = StreamOptions::new(at, timeline);
        options.slot = slot.clone();
        let mut receiver = Receiver {
            directory: directory.to_owned(),
            timeline,
            segment,
            open: None,
            flushed: Lsn::INVALID,
        };
        let mut stream = client.start_replication(options).await?;
        let mut enough = false;
        while !enough {
            match stream.next().await? {
                Some(WalEvent::Data { start, data }) => {
                    if receiver.take(start, &data)? {
                        stream.report(receiver.positions(stream.position())).await?;
                    }
                }
                // A server that shuts down waits until all it sent is reported as flushed.
                Some(_) => {
                    if receiver.flushed < stream.position() {
                        receiver.sync()?;
                        receiver.flushed = stream.position();
                        stream.report(receiver.positions(stream.position())).await?;
                    }
                }
                None => break,
            }
            enough = until.is_some_and(|until| stream.position() >= until);
        }
        receiver.sync()?;
        stream.set_positions(receiver.positions(stream.position()));
        match stream.finish().await? {
            StreamEnd::Timeline {
                next,
                start,
                client: same,
            } => {
                client = same;
                writeln!(program::stdout(), "timeline {timeline} ends at {start}")?;
                // The segment in which it ends begins anew on the next one.
                (timeline, at) = (next, start.start_of(segment));
            }
            StreamEnd::Stopped(client) => {
                client.close().await;
                return Ok(());
            }
            _ => return Err("the server shuts down".into()),
        }
    }
}

/// Where a slot keeps WAL from, and on which timeline: a slot that is older than a promotion keeps WAL
/// of an earlier one. Servers before 15 can be asked in SQL only, over an ordinary session.
async fn kept_by(
    slot: &SlotName,
    client: &mut Client,
    identity: &SystemIdentity,
    ordinary: &Config,
) -> Result<Option<(TimelineId, Lsn)>, Failure> {
    match client.read_slot(slot).await {
        Ok(position) => {
            return Ok(position.and_then(|position| {
                let timeline = position.restart_timeline.unwrap_or(identity.timeline);
                Some((timeline, position.restart_lsn?))
            }));
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        Err(error) => return Err(error.into()),
    }
    let mut session = Client::connect(&ordinary.clone().with_replication(Replication::Off)).await?;
    let name = quote_literal(slot.as_str())?;
    let sql =
        format!("SELECT restart_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = {name}");
    let results = session.simple_query(&sql).await?;
    session.close().await;
    let Some(lsn) = results.first().and_then(|result| result.value(0, 0)) else {
        return Ok(None);
    };
    let lsn: Lsn = lsn.parse()?;
    let timeline = match identity.timeline {
        TimelineId::FIRST => TimelineId::FIRST,
        current => {
            let history = client.timeline_history(current).await?;
            TimelineHistory::parse(current, &history.content)?.timeline_of(lsn)
        }
    };
    Ok(Some((timeline, lsn)))
}

/// Where to go on: the newest timeline, and the end of its newest whole segment.
fn newest(directory: &Path, segment: u64) -> io::Result<Option<(TimelineId, Lsn)>> {
    fs::create_dir_all(directory)?;
    let mut found = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let parts = [name.get(..8), name.get(8..16), name.get(16..)];
        let [Some(timeline), Some(log), Some(number)] = parts.map(|part| {
            part.filter(|part| part.len() == 8)
                .and_then(|part| u32::from_str_radix(part, 16).ok())
        }) else {
            continue;
        };
        if entry.metadata()?.len() == segment {
            let end = (u64::from(log) << 32) + (u64::from(number) + 1) * segment;
            found = found.max(
                TimelineId::new(timeline)
                    .ok()
                    .map(|timeline| (timeline, Lsn(end))),
            );
        }
    }
    Ok(found)
}

/// Writes the history of a timeline unless it is there: temporary, durable, renamed.
async fn save_history(
    client: &mut Client,
    directory: &Path,
    timeline: TimelineId,
) -> Result<(), Failure> {
    let path = directory.join(format!("{:08X}.history", timeline.get()));
    if timeline == TimelineId::FIRST || path.exists() {
        return Ok(());
    }
    let history = client.timeline_history(timeline).await?;
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&history.content)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

struct Receiver {
    directory: PathBuf,
    timeline: TimelineId,
    segment: u64,
    open: Option<(File, PathBuf)>,
    /// Up to here everything is durable.
    flushed: Lsn,
}

impl Receiver {
    fn positions(&self, received: Lsn) -> Positions {
        Positions {
            write: received,
            flush: self.flushed,
            apply: Lsn::INVALID,
        }
    }

    /// Writes WAL. Says whether a segment was completed, which is worth a report.
    fn take(&mut self, mut at: Lsn, mut data: &[u8]) -> io::Result<bool> {
        let mut completed = false;
        while !data.is_empty() {
            let left = self.segment - at.offset_in(self.segment);
            let (piece, rest) =
                data.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(data.len()));
            if self.open.is_none() {
                let number = at.0 / self.segment;
                let per_log = (1 << 32) / self.segment;
                let name = format!(
                    "{:08X}{:08X}{:08X}",
                    self.timeline.get(),
                    number / per_log,
                    number % per_log
                );
                let path = self.directory.join(name);
                // Written over from its beginning if there is one, and not cut: what is there is durable and may
                // be the only copy until the same bytes have come again.
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(path.with_extension("partial"))?;
                file.set_len(self.segment)?;
                self.open = Some((file, path));
            }
            if let Some((file, _)) = &mut self.open {
                file.write_all(piece)?;
            }
            data = rest;
            at = Lsn(at.0 + u64::try_from(piece.len()).unwrap_or(0));
            if at.offset_in(self.segment) == 0
                && let Some((file, path)) = self.open.take()
            {
                file.sync_all()?;
                fs::rename(path.with_extension("partial"), &path)?;
                File::open(&self.directory)?.sync_all()?;
                completed = true;
                self.flushed = at;
            }
        }
        Ok(completed)
    }

    /// Makes the segment that is not whole yet durable as well.
    fn sync(&self) -> io::Result<()> {
        match &self.open {
            Some((file, _)) => file.sync_all(),
            None => Ok(()),
        }
    }
}
