//! What a program knows and the library does not ask for: the environment and where things are.

use neon_pgwire::Surroundings;

/// The surroundings as libpq would find them.
pub fn of_this_process() -> Surroundings {
    let mut surroundings = Surroundings::none();
    surroundings.environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("PG"))
        .collect();
    surroundings.home = std::env::home_dir();
    surroundings.os_user = std::env::var("USER")
        .ok()
        .or_else(|| Some("postgres".to_owned()));
    let sockets = std::path::Path::new("/var/run/postgresql");
    surroundings.socket_directory = sockets.is_dir().then(|| sockets.to_owned());
    surroundings.system_roots = Some("/etc/ssl/certs/ca-certificates.crt".into());
    surroundings.user_database = Some("/etc/passwd".into());
    surroundings
}
