//! On what it was measured.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The machine, as far as it explains figures.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) memory: u64,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    pub(crate) began: String,
}

impl Machine {
    pub(crate) fn look(folder: &Path) -> Self {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cores: cores(),
            processor: field(&processors, "model name").unwrap_or_default(),
            memory: field(&memory, "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024,
            kernel: said(Command::new("uname").arg("-r")),
            file_system: said(Command::new("stat").args(["-f", "-c", "%T"]).arg(folder)),
            began: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])),
        }
    }
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load of the last minute: above the number of cores, others were at work too.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(0.0)
}

fn field(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
}

fn said(command: &mut Command) -> String {
    let output = command
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
