//! Packs a stopped cluster into one file: `snapshot_to_single_file <data directory> <file|->`.
//!
//! With `-` the snapshot goes to standard output in one pass, so that it can be piped to anywhere. Every
//! page is checked on the way; a damaged one ends it. Exit code 1 when something went wrong; a file that was
//! begun is then removed.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use neon_examples::program;
use neon_snapshot_format::Source;
use neon_snapshot_format::pack::{NeonWriter, PackId, PackOptions};
use neon_snapshot_format::pgdata::PgData;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let usage = "snapshot_to_single_file DATA_DIRECTORY FILE|-";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let [from, to] = words.as_slice() else {
        return program::wrong_usage("", usage);
    };
    match pack(Path::new(from), Path::new(to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => program::failed(error.as_ref()),
    }
}

fn pack(directory: &Path, target: &Path) -> Result<()> {
    let mut cluster = PgData::cold(directory)?;
    if target.as_os_str() == "-" {
        return write(&mut cluster, std::io::stdout()).map(drop);
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(target)
        .map_err(|error| format!("{}: {error}", target.display()))?;
    let outcome = write(&mut cluster, file).and_then(|file| Ok(file.sync_all()?));
    match outcome {
        Ok(()) => {
            // The name is durable with its directory.
            let parent = target
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
            let bytes = target.metadata()?.len();
            writeln!(program::stdout(), "{}: {bytes} bytes", target.display())?;
            Ok(())
        }
        Err(error) => {
            std::fs::remove_file(target)?;
            Err(error)
        }
    }
}

fn write<W: Write + Send>(cluster: &mut PgData, stream: W) -> Result<W> {
    let mut id = [0; 16];
    std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut id)?;
    let stream = BufWriter::with_capacity(1 << 20, stream);
    let threads = std::thread::available_parallelism()?.get();
    let options = PackOptions::new(PackId(id));
    let mut writer = NeonWriter::new(stream, options)?.threads(threads);
    cluster.send(&mut writer)?;
    let stream = writer.into_inner().ok_or("the snapshot was not finished")?;
    stream
        .into_inner()
        .map_err(|error| error.into_error().into())
}
