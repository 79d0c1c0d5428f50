//! Archiving is turned on only together with a command that can work: with one that never does, or with none, a
//! server keeps all WAL until its disk is full.

use std::time::Duration;

use crate::command::{self, Running};
use crate::error::{Error, ErrorKind, Result};
use crate::os_user::OsUser;

/// Refuses settings that turn archiving on with nothing that archives: no command or library, a command that a
/// shell cannot parse, or one whose program the server's user does not have.
///
/// `value` gives a setting as it will be. The command itself is not run.
pub(crate) async fn check<'a>(
    value: impl Fn(&str) -> Option<&'a str>,
    user: &OsUser,
) -> Result<()> {
    let is_set = |name| value(name).is_some_and(|value| !value.trim().is_empty());
    let mode = value("archive_mode")
        .unwrap_or_default()
        .to_ascii_lowercase();
    let off = ["", "off", "of", "false", "no", "0"].contains(&mode.as_str());
    if off || is_set("archive_library") {
        return Ok(());
    }
    let refused = |reason: &'static str| {
        Error::new(ErrorKind::BadSetting, "archive_command", reason)
            .with_hint("WAL would be kept until the disk is full; turn archive_mode off, or give a command that archives")
    };
    let Some(command) = value("archive_command").filter(|_| is_set("archive_command")) else {
        return Err(refused("is not set, and archive_mode is on"));
    };
    let shell = async |arguments: &[&str]| {
        let mut shell = command::clean("/bin/sh".as_ref(), user, None);
        shell.args(arguments);
        Running::spawn(&mut shell)?
            .wait(Duration::from_secs(60))
            .await
    };
    let parsed = shell(&["-n", "-c", command]).await?;
    if !parsed.status.success() {
        return Err(refused("cannot be parsed by a shell").with_log(parsed.lines()));
    }
    // Anything but a plain word is more than we understand.
    let program = command.split_whitespace().next().unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if program.bytes().all(plain) {
        let found = shell(&["-c", "command -v -- \"$1\"", "sh", program]).await?;
        if !found.status.success() {
            return Err(refused("names a program that is not there"));
        }
    }
    Ok(())
}
