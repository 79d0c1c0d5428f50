//! Choosing a port: by binding it on both address families, since only that proves it free.
//!
//! Between the test and the server's own bind somebody else can take the port, so whoever starts a server
//! on a chosen port tries again with another one. After the first success an instance keeps its port.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::ops::RangeInclusive;

/// Which port an instance that has none yet gets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortChoice {
    /// Exactly this one.
    Fixed(u16),
    /// The first of a range that is free on every address and not in `avoid`.
    Free {
        /// Ports to try, in this order.
        range: RangeInclusive<u16>,
        /// Ports that belong to instances that do not run now.
        avoid: Vec<u16>,
    },
}

impl Default for PortChoice {
    /// From 5432, PostgreSQL's own, upwards.
    fn default() -> Self {
        Self::Free {
            range: 5432..=6431,
            avoid: Vec::new(),
        }
    }
}

/// The loopback addresses of both families.
pub(crate) const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Whether a server could listen on this port of both loopback addresses now.
#[must_use]
pub fn port_is_free(port: u16) -> bool {
    is_free(port, &LOOPBACK)
}

/// Whether a server could listen on this port of all these addresses now. An address that the machine
/// does not have (IPv6 may be off) does not count.
pub(crate) fn is_free(port: u16, addresses: &[IpAddr]) -> bool {
    addresses
        .iter()
        .all(|address| match TcpListener::bind((*address, port)) {
            Ok(_) => true,
            Err(error) => {
                matches!(
                    error.kind(),
                    ErrorKind::AddrNotAvailable | ErrorKind::Unsupported
                ) || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
            }
        })
}

/// The `attempt`-th port to try. Later attempts, after somebody was faster, start at a place of their own, so
/// that many starters do not meet again.
pub(crate) fn choose(
    range: &RangeInclusive<u16>,
    avoid: &[u16],
    attempt: u32,
    addresses: &[IpAddr],
) -> Option<u16> {
    let count = u32::from(range.end().checked_sub(*range.start())?) + 1;
    let first = if attempt == 0 {
        0
    } else {
        let own = std::process::id().wrapping_mul(2_654_435_761);
        own.wrapping_add(attempt.wrapping_mul(40_503)) % count
    };
    (0..count)
        .filter_map(|step| u16::try_from((first + step) % count).ok())
        .filter_map(|step| range.start().checked_add(step))
        .find(|port| !avoid.contains(port) && is_free(*port, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_on_one_family_only_is_not_free() {
        for address in LOOPBACK {
            let Ok(taken) = TcpListener::bind((address, 0)) else {
                continue;
            };
            let port = taken.local_addr().unwrap().port();
            assert!(!is_free(port, &LOOPBACK), "{address}");
        }
    }

    #[test]
    fn ports_to_avoid_are_not_chosen_and_an_empty_range_has_none() {
        let port = choose(&(20_000..=20_100), &[20_000], 0, &LOOPBACK).unwrap();
        assert_ne!(port, 20_000);
        assert_eq!(choose(&(20_000..=20_000), &[20_000], 0, &LOOPBACK), None);
        assert_eq!(choose(&RangeInclusive::new(2, 1), &[], 0, &LOOPBACK), None);
    }
}
