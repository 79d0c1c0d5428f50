//! The log of real servers, walked and compared with what PostgreSQL itself says about it.

mod agreement;
mod crash;
mod damage;
mod events;
mod forged;
mod judges;
mod page_lsns;
mod summaries;
pub(crate) mod walk;
mod workload;
